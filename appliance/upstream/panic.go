package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"

	"kthwd/appliance/program"
	"kthwd/appliance/term"
)

// panicHandler is called by upstream's HandleCrash before it panics again, on the goroutine
// that panics. In a term of a program it ends the term and the goroutine. Otherwise it logs
// the component before the process dies: a Go panic trace does not name which of the four
// programs panicked.
func panicHandler(log *slog.Logger) func(context.Context, any) {
	return func(_ context.Context, v any) {
		if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			return // how a handler ends its connection; net/http catches it
		}
		if t := term.Current(); t != nil {
			where := term.PanicSite()
			log.Error("panic, the term ends", "component", t.Component(), "panic", fmt.Sprint(v), "at", where)
			t.Leave(&term.Exit{Reason: term.ReasonPanic, Where: where, Cause: fmt.Sprint(v)})
		}
		component, served := panicking()
		if served {
			log.Error("panic in a request, which fails", "component", component, "panic", fmt.Sprint(v))
			return
		}
		log.Error("panic, the process crashes now", "component", component, "panic", fmt.Sprint(v))
	}
}

// panicking returns the program of the innermost frame that belongs to one, and whether the
// goroutine serves a request: net/http then catches the panic.
func panicking() (component string, served bool) {
	pcs := make([]uintptr, 512)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	component = program.Kubernetes
	for {
		frame, more := frames.Next()
		if component == program.Kubernetes {
			component = componentOfFunction(frame.Function)
		}
		if strings.HasSuffix(frame.Function, ".(*conn).serve") || strings.HasSuffix(frame.Function, "erverConn).runHandler") {
			served = true
		}
		if !more {
			return component, served
		}
	}
}
