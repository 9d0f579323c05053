package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"

	"kthwd/appliance/program"
)

// panicMarker logs the component before upstream's HandleCrash panics again and the
// process dies: a Go panic trace does not name which of the four programs panicked.
func panicMarker(log *slog.Logger) func(context.Context, any) {
	return func(_ context.Context, v any) {
		if v == http.ErrAbortHandler {
			return // how a handler ends its connection; net/http catches it
		}
		pcs := make([]uintptr, 32)
		frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
		component := program.Kubernetes
		for {
			frame, more := frames.Next()
			if c := componentOf(frame.PC); c != program.Kubernetes {
				component = c
				break
			}
			if !more {
				break
			}
		}
		log.Error("panic, the process crashes now", "component", component, "panic", fmt.Sprint(v))
	}
}
