package upstream

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	klog "k8s.io/klog/v2"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
)

// CatchExits turns klog.Fatal and klog.FlushAndExit in upstream's code into an
// orderly stop of g. It parks the calling goroutine for ever: callers do not expect
// klog.OsExit to return (klog/exit.go), and running their deferred functions would
// let the program continue. restore gives klog its own behaviour back.
func CatchExits(g *supervise.Group, log *slog.Logger) (restore func()) {
	before := klog.OsExit
	klog.OsExit = func(code int) {
		where, component := exitCaller()
		g.Fail(fmt.Errorf("%s: upstream code wanted to exit the process with code %d, at %s; its reason is the log line before", component, code, where))
		select {}
	}
	utilruntime.PanicHandlers = append(utilruntime.PanicHandlers, panicMarker(log))
	return func() { klog.OsExit = before }
}

// exitCaller returns the caller of klog: the first frame outside klog.
func exitCaller() (where, component string) {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, "k8s.io/klog/") {
			return fmt.Sprintf("%s:%d", frame.File, frame.Line), componentOf(frame.PC)
		}
		if !more {
			return "an unknown place", program.Kubernetes
		}
	}
}
