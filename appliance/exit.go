package appliance

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/klog/v2"

	"kthwd/appliance/supervise"
)

// catchExits turns klog.Fatal and klog.FlushAndExit in upstream's code into an
// orderly stop of g. The goroutine that called is parked for ever: its callers
// do not expect klog.OsExit to return (klog/exit.go), and running its deferred
// functions would let them go on. The caller of the returned function gets
// klog's own behaviour back.
func catchExits(g *supervise.Group, log *slog.Logger) (restore func()) {
	before := klog.OsExit
	klog.OsExit = func(code int) {
		where, component := exitCaller()
		g.Fail(fmt.Errorf("%s: upstream code wanted to exit the process with code %d, at %s; its reason is the log line before", component, code, where))
		select {}
	}
	utilruntime.PanicHandlers = append(utilruntime.PanicHandlers, panicMarker(log))
	return func() { klog.OsExit = before }
}

// exitCaller finds who called klog: the first frame outside it.
func exitCaller() (where, component string) {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, "k8s.io/klog/") {
			return fmt.Sprintf("%s:%d", frame.File, frame.Line), componentOf(frame.PC)
		}
		if !more {
			return "an unknown place", nameKubernetes
		}
	}
}

// aliveCheck is the health check of 10257 and 10259: unhealthy when the
// component has been trying to come back for longer than upstream's own
// watchdog allows a lease to be overdue (20 s).
func aliveCheck(g *supervise.Group, component string) healthz.HealthChecker {
	return healthz.NamedCheck("leaderElection", func(*http.Request) error {
		for _, s := range g.Status() {
			if s.Name == component && s.Restarts > 0 && s.State == supervise.Starting && time.Since(s.Since) > 20*time.Second {
				return fmt.Errorf("%s: %s", s.Name, s.Reason)
			}
		}
		return nil
	})
}
