package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	klog "k8s.io/klog/v2"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/term"
)

// Every way in which upstream's code wants to end the process, on a goroutine that a library
// has started in a term, ends this term with its cause. Afterwards the goroutine's locks are
// free, and those who wait for it go on.
func TestExitEndsTheTerm(t *testing.T) {
	logs, out := newLogs(t, "info")
	g := supervise.New(slog.New(slog.DiscardHandler))
	defer CatchExits(g, logs.Logger("kthwd"))()
	for _, tt := range []struct {
		name   string
		leave  func(ctx context.Context)
		reason string
		cause  string
	}{
		{"FlushAndExit after a line", func(ctx context.Context) {
			klog.FromContext(ctx).Error(errors.New("webhook \"x\" refused"), "Unable to get any supported resources from server")
			klog.FlushAndExit(klog.ExitFlushTimeout, 1)
		}, term.ReasonExit, `Unable to get any supported resources from server: webhook "x" refused`},
		{"FlushAndExit after a warning", func(ctx context.Context) {
			klog.Warningf("get token failed: %v", "no more tokens")
			klog.FromContext(ctx).Error(errors.New("timed out"), "Unable to get any supported resources from server")
			klog.FlushAndExit(klog.ExitFlushTimeout, 1)
		}, term.ReasonExit, "get token failed: no more tokens; Unable to get any supported resources from server: timed out"},
		{"Fatal", func(context.Context) { klog.Fatal("no client") }, term.ReasonFatal, "no client"},
		{"Exitf", func(context.Context) { klog.Exitf("code %d", 1) }, term.ReasonExit, "code 1"},
		{"a panic", func(ctx context.Context) {
			defer utilruntime.HandleCrashWithContext(ctx)
			var empty []int
			_ = empty[len(tGone)]
		}, term.ReasonPanic, "runtime error: index out of range [0] with length 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			BridgeKlog(t.Context(), logs)
			work := term.New(t.Context(), program.Scheduler)
			defer work.Close()
			var mu sync.Mutex
			err := <-work.Go(func(ctx context.Context) error {
				ctx = ContextFor(ctx, logs, program.Scheduler)
				var wg sync.WaitGroup
				wg.Go(func() {
					mu.Lock()
					defer mu.Unlock()
					tt.leave(ctx)
					t.Error("the goroutine went on")
				})
				wg.Wait()
				klog.FromContext(ctx).Error(nil, "another goroutine's")
				<-ctx.Done()
				return ctx.Err()
			})
			var exit *term.Exit
			if !errors.As(err, &exit) || exit.Reason != tt.reason || exit.Cause != tt.cause || !strings.Contains(exit.Where, "exit_test.go:") {
				t.Errorf("got %#v, want reason %s with cause %q", err, tt.reason, tt.cause)
			}
			if !mu.TryLock() {
				t.Error("the goroutine has kept its lock")
			}
			if _, reason := g.Ready(); reason == "stopping" {
				t.Error("the group stops")
			}
			if log := out.take(); !strings.Contains(log, "component="+program.Scheduler) {
				t.Errorf("got log %s, want the component", log)
			}
		})
	}
}

var tGone []int // keeps the compiler from seeing that the index is out of range

// idle is a component that does nothing.
type idle struct{}

func (idle) Name() string { return "idle" }

func (idle) Run(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	return nil
}

// An exit outside of every term, such as the API server's, still stops the group in order.
func TestExitOutsideOfATermStopsTheGroup(t *testing.T) {
	logs, _ := newLogs(t, "info")
	g := supervise.New(slog.New(slog.DiscardHandler))
	restore := CatchExits(g, logs.Logger("kthwd"))
	defer restore()
	g.Add(idle{})
	other := term.New(t.Context(), program.Scheduler)
	defer other.Close()
	BridgeKlog(t.Context(), logs)
	go func() { // parked for ever
		klog.ErrorS(errors.New("30 s are over"), "PostStartHook failed")
		klog.FlushAndExit(klog.ExitFlushTimeout, 1)
		t.Error("the goroutine went on")
	}()
	err := g.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "PostStartHook failed: 30 s are over") || !strings.Contains(err.Error(), "code 1") {
		t.Errorf("got %v, want the group's failure with its cause", err)
	}
	if other.Exited() != nil {
		t.Error("the exit was attributed to a term")
	}
}

// A panic in a request does not end the process, and the log does not say so.
func TestPanicInARequest(t *testing.T) {
	logs, out := newLogs(t, "info")
	defer CatchExits(supervise.New(slog.New(slog.DiscardHandler)), logs.Logger("kthwd"))()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		defer utilruntime.HandleCrash()
		panic("an object that nobody expected")
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	if resp, err := server.Client().Get(server.URL); err == nil {
		resp.Body.Close()
		t.Errorf("got %s, want no answer", resp.Status)
	}
	if log := out.take(); !strings.Contains(log, `msg="panic in a request, which fails"`) || strings.Contains(log, "crashes") {
		t.Errorf("got log %s, want a request that fails", log)
	}
}
