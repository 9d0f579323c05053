package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"kthwd/appliance/config"
)

// What a person reads goes through this file:
//
//   - what was asked for goes to standard output;
//   - all else goes to standard error, as "kthwd: error: …", each on one line,
//     followed by "kthwd: hint: …" where there is advice;
//   - no capital initials, no full stops, no stack traces;
//   - colours on a terminal only, and none with NO_COLOR.

// usageError is a command line that cannot be meant. The exit code is 2.
type usageError struct{ text, hint string }

func usagef(format string, args ...any) *usageError {
	return &usageError{text: fmt.Sprintf(format, args...)}
}

func (u *usageError) Error() string { return u.text }
func (u *usageError) Hint() string  { return u.hint }

// hintedError is an error that knows what to do about it.
type hintedError struct {
	error
	hint string
}

func (h *hintedError) Hint() string  { return h.hint }
func (h *hintedError) Unwrap() error { return h.error }

// These are exit codes of 1 and 2 without a word: the answer was the word.
var (
	errDegraded = errors.New("degraded")
	errDown     = errors.New("down")
)

// report writes err and returns the exit code that goes with it.
func (a *app) report(err error) (code int) {
	if err == nil {
		return 0
	}
	switch {
	case errors.Is(err, errDegraded):
		return 1
	case errors.Is(err, errDown):
		return 2
	}
	p, level := painter(a.err), a.priority(slog.LevelError)
	said := map[string]bool{}
	all := flatten(err)
	a.notify.failed(all)
	for _, e := range all {
		fmt.Fprintf(a.err, "%skthwd: %s %s\n", level, p("31;1", "error:"), oneLine(e.Error()))
		if hint := hintFor(e); hint != "" && !said[hint] {
			said[hint] = true
			fmt.Fprintf(a.err, "%skthwd: %s %s\n", level, p("36", "hint:"), oneLine(hint))
		}
	}
	var down *downError
	if errors.As(err, &down) {
		return 2
	}
	var usage *usageError
	var problem *config.Problem
	var written interface{ Usage() bool } // from package appliance: arguments that a program does not take
	if errors.As(err, &usage) || errors.As(err, &problem) || errors.As(err, &written) {
		return 2
	}
	return 1
}

func (a *app) warn(text string) {
	fmt.Fprintf(a.err, "%skthwd: %s %s\n", a.priority(slog.LevelWarn), painter(a.err)("33", "warning:"), oneLine(text))
}

// flatten takes errors.Join apart, and only that: an error that wraps two causes
// in a sentence stays one.
func flatten(err error) (all []error) {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var lines []string
	for _, e := range joined.Unwrap() {
		lines = append(lines, e.Error())
		all = append(all, flatten(e)...)
	}
	if strings.Join(lines, "\n") != err.Error() {
		return []error{err}
	}
	return all
}

func oneLine(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// writeJSON writes v for programs.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeYAML writes v, with the keys that it has in JSON, for people and programs.
func writeYAML(w io.Writer, v any) error {
	text, err := yaml.Marshal(v)
	if err == nil {
		_, err = w.Write(text)
	}
	return err
}

// checkOutput reads the value of -o.
func checkOutput(format string) (asJSON bool, err error) {
	switch format {
	case "":
		return false, nil
	case "json":
		return true, nil
	}
	return false, usagef("--output %q is no format: want json", format)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func terminalWidth(w io.Writer, otherwise int) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 40 {
			return width
		}
	}
	return otherwise
}

// colours tells whether w takes them. https://no-color.org
func colours(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func painter(w io.Writer) func(code, s string) string {
	if !colours(w) {
		return func(_, s string) string { return s }
	}
	return func(code, s string) string { return "\x1b[" + code + "m" + s + "\x1b[0m" }
}
