package upstream

import (
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	klog "k8s.io/klog/v2"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/term"
)

// CatchExits keeps klog.Fatal, klog.FlushAndExit and panics in upstream's code to their
// program. In a term of a program (package term) they end this term. In all other code,
// such as the API server's, an exit becomes an orderly stop of g, and a panic crashes the
// process. restore undoes CatchExits.
//
// The goroutine that wanted to exit does not go on: callers do not expect klog.OsExit to
// return (klog/exit.go). It is parked for ever where the process stops, because its deferred
// functions would let the program continue until then: the API server would mark a failed
// start-up hook as done.
func CatchExits(g *supervise.Group, log *slog.Logger) (restore func()) {
	exit, handlers := klog.OsExit, utilruntime.PanicHandlers
	klog.OsExit = func(code int) {
		reason, where, component := exitCaller()
		e := &term.Exit{Reason: reason, Where: where, Cause: lastErrors.cause()}
		if t := term.Current(); t != nil {
			log.Error("the program wanted to exit; its term ends", "component", t.Component(), "code", code, "at", where)
			t.Leave(e)
		}
		g.Fail(fmt.Errorf("%s: %w; upstream's code wanted to exit the process with code %d, at %s", component, e, code, where))
		select {}
	}
	utilruntime.PanicHandlers = append(slices.Clip(handlers), panicHandler(log))
	return func() { klog.OsExit, utilruntime.PanicHandlers = exit, handlers }
}

// exitCaller describes the call of klog: the first frame outside klog, and how klog was
// called.
func exitCaller() (reason, where, component string) {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	reason = term.ReasonExit
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, "k8s.io/klog/") {
			return reason, fmt.Sprintf("%s:%d", frame.File, frame.Line), componentOf(frame.PC)
		}
		if strings.Contains(frame.Function, ".Fatal") {
			reason = term.ReasonFatal
		}
		if !more {
			return reason, "an unknown place", program.Kubernetes
		}
	}
}
