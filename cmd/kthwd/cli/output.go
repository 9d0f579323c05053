package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
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

// Report prints err and returns its exit code.
func (a *App) Report(err error) (code int) {
	if err == nil {
		return 0
	}
	switch {
	case errors.Is(err, ErrDegraded):
		return 1
	case errors.Is(err, ErrDown):
		return 2
	}
	if code, ok := errors.AsType[Exited](err); ok {
		return int(code)
	}
	p, level := Painter(a.Err), a.Priority(slog.LevelError)
	said := map[string]bool{}
	all := advice.Lines(err)
	if a.OnError != nil {
		a.OnError(all)
	}
	for _, e := range all {
		fmt.Fprintf(a.Err, "%skthwd: %s %s\n", level, p("31;1", "error:"), text.Joined(e.Error()))
		if hint := a.hint(e); hint != "" && !said[hint] {
			said[hint] = true
			fmt.Fprintf(a.Err, "%skthwd: %s %s\n", level, p("36", "hint:"), text.Joined(a.AsTyped(hint)))
		}
	}
	var down *downError
	if errors.As(err, &down) || IsUsage(err) {
		return 2
	}
	if unrunnable, ok := errors.AsType[*scratch.Unrunnable](err); ok {
		return unrunnable.Code()
	}
	return 1
}

// Warn prints a warning.
func (a *App) Warn(warning string) {
	fmt.Fprintf(a.Err, "%skthwd: %s %s\n", a.Priority(slog.LevelWarn), Painter(a.Err)("33", "warning:"), text.Joined(a.AsTyped(warning)))
}

// WriteJSON writes v for programs.
func WriteJSON(w io.Writer, v any) error {
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

// WriteYAML writes v, with its JSON keys, for people and programs.
func WriteYAML(w io.Writer, v any) error {
	document, err := yaml.Marshal(v)
	if err == nil {
		_, err = w.Write(document)
	}
	return err
}

// CheckOutput reads the value of -o.
func CheckOutput(format string) (asJSON bool, err error) {
	switch format {
	case "":
		return false, nil
	case "json":
		return true, nil
	}
	return false, Usagef("--output %q is no format: want json", format)
}

// IsTerminal reports whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// TerminalWidth is the width of the terminal w, or otherwise.
func TerminalWidth(w io.Writer, otherwise int) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 40 {
			return width
		}
	}
	return otherwise
}

// Colours reports whether w supports colours and they are wanted (https://no-color.org).
func Colours(w io.Writer) bool {
	return IsTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Painter colours text for w, if that supports it.
func Painter(w io.Writer) func(code, s string) string { return text.Painter(Colours(w)) }

// OutputFlag adds the flag -o.
func OutputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", "`FORMAT` Format of the output: json; empty means a table.")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp)))
}

// Absolute is a path from the root, whatever the working directory is.
func Absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
