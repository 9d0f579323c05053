package upstream

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"

	klog "k8s.io/klog/v2"

	"kthwd/appliance/text"
)

// errorLines keeps the newest error lines and warnings of upstream's code with the goroutines
// that wrote them. Code that exits says why in a line of its own before (klog.FlushAndExit
// takes no message), and other goroutines write lines in between. The error often names only
// a timeout, and a warning before it the cause.
type errorLines struct {
	mu    sync.Mutex
	lines [64]errorLine
	next  int
}

type errorLine struct {
	goroutine, text string
	warning         bool
}

var lastErrors errorLines

// add keeps a line of the calling goroutine.
func (e *errorLines) add(text string, warning bool) {
	line := errorLine{goroutine(), text, warning}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lines[e.next] = line
	e.next = (e.next + 1) % len(e.lines)
}

// own returns the newest warning and the newest error of the calling goroutine; "" for none.
func (e *errorLines) own() (warning, err string) {
	me := goroutine()
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.lines {
		switch line := e.lines[(e.next-1-i+len(e.lines))%len(e.lines)]; {
		case line.goroutine != me:
		case line.warning && warning == "":
			warning = line.text
		case !line.warning && err == "":
			err = line.text
		}
	}
	return warning, err
}

// cause is what the calling goroutine has said last, the warning first, because the error
// follows from it.
func (e *errorLines) cause() string {
	warning, err := e.own()
	if warning == "" || err == "" {
		return warning + err
	}
	return warning + "; " + err
}

// Explained adds the newest warning of the calling goroutine to an error that upstream's
// code has returned to it.
func Explained(err error) error {
	warning, _ := lastErrors.own()
	if err == nil || warning == "" {
		return err
	}
	return fmt.Errorf("%s; %w", warning, err)
}

// lineOf is the message of a record, then its error, if it has one.
func lineOf(r slog.Record) string {
	line := strings.TrimSpace(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "err" || a.Value.Any() == nil {
			return true
		}
		line += ": " + a.Value.String()
		return false
	})
	return shortened(line)
}

func shortened(line string) string {
	line = text.Line(line)
	if runes := []rune(line); len(runes) > longestLine { // it may hold a whole object
		line = string(runes[:longestLine]) + "…"
	}
	return line
}

const longestLine = 400

// severityFilter keeps the lines of klog's unstructured functions. klog gives a logger its
// warnings and fatal lines at level info, where they are not even in the log.
type severityFilter struct{}

var _ klog.LogFilter = severityFilter{}

// Filter implements klog.LogFilter. It changes nothing.
func (severityFilter) Filter(args []any) []any {
	keepSevere(func() string { return fmt.Sprint(args...) })
	return args
}

// FilterF implements klog.LogFilter. It changes nothing.
func (severityFilter) FilterF(format string, args []any) (string, []any) {
	keepSevere(func() string { return fmt.Sprintf(format, args...) })
	return format, args
}

// FilterS implements klog.LogFilter. It changes nothing: a logger is given structured lines
// with their severity.
func (severityFilter) FilterS(msg string, values []any) (string, []any) { return msg, values }

// keepSevere keeps a warning or a fatal line, by the function of klog that was called.
func keepSevere(line func() string) {
	pcs := make([]uintptr, 8)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		frame, more := frames.Next()
		name, inKlog := strings.CutPrefix(frame.Function, "k8s.io/klog/v2.")
		switch {
		case inKlog && strings.HasPrefix(name, "Warning"):
			lastErrors.add(shortened(line()), true)
			return
		case inKlog && (strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Exit")):
			lastErrors.add(shortened(line()), false)
			return
		case !inKlog || !more:
			return
		}
	}
}

// goroutine identifies the calling goroutine by the header of its stack: goroutine 7 [running]:
func goroutine() string {
	buf := make([]byte, 64)
	header, _, _ := bytes.Cut(buf[:runtime.Stack(buf, false)], []byte(" ["))
	return string(header)
}
