package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"kthwd/appliance/advice"
	"kthwd/appliance/scratch"
	"kthwd/appliance/text"
)

// Every line for a person goes through this file:
//
//   - the requested output goes to standard output;
//   - everything else goes to standard error, as "kthwd: error: …", one line each,
//     followed by "kthwd: hint: …" if there is advice;
//   - no capital initials, no full stops, no stack traces;
//   - colours on a terminal only, and none with NO_COLOR.

// report prints err and returns its exit code.
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
	if code, ok := errors.AsType[exited](err); ok {
		return int(code)
	}
	p, level := painter(a.err), a.priority(slog.LevelError)
	said := map[string]bool{}
	all := advice.Lines(err)
	a.notify.failed(all)
	for _, e := range all {
		fmt.Fprintf(a.err, "%skthwd: %s %s\n", level, p("31;1", "error:"), text.Joined(e.Error()))
		if hint := a.hint(e); hint != "" && !said[hint] {
			said[hint] = true
			fmt.Fprintf(a.err, "%skthwd: %s %s\n", level, p("36", "hint:"), text.Joined(a.asTyped(hint)))
		}
	}
	var down *downError
	if errors.As(err, &down) || isUsage(err) {
		return 2
	}
	if unrunnable, ok := errors.AsType[*scratch.Unrunnable](err); ok {
		return unrunnable.Code()
	}
	return 1
}

func (a *app) warn(warning string) {
	fmt.Fprintf(a.err, "%skthwd: %s %s\n", a.priority(slog.LevelWarn), painter(a.err)("33", "warning:"), text.Joined(a.asTyped(warning)))
}

// writeJSON writes v for programs.
func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(printableJSON(b.Bytes()))
	return err
}

// printableJSON escapes what a terminal may act on, and JSON allows in a string: the control
// characters from U+007F on, and those that hide text or reverse its direction. The value is the same.
func printableJSON(document []byte) []byte {
	var b bytes.Buffer
	for _, r := range string(document) {
		switch {
		case r < utf8.RuneSelf && r != 0x7f || unicode.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

// writeYAML writes v, with its JSON keys, for people and programs.
func writeYAML(w io.Writer, v any) error {
	document, err := yaml.Marshal(v)
	if err == nil {
		_, err = w.Write(document)
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

// colours reports whether w supports colours and they are wanted (https://no-color.org).
func colours(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func painter(w io.Writer) func(code, s string) string { return text.Painter(colours(w)) }
