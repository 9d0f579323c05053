package supervise

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

const panicHelper = "KTHWD_SUPERVISE_PANIC"

// TestMain is also the program that panics.
func TestMain(m *testing.M) {
	if os.Getenv(panicHelper) != "" {
		g := New(slog.New(slog.NewTextHandler(os.Stderr, nil)))
		etcd := g.Add(part{"etcd", func(ctx context.Context, ready func()) error { ready(); <-ctx.Done(); return nil }})
		g.Add(part{"kube-scheduler", func(context.Context, func()) error { panic("index out of reach") }}, etcd)
		_ = g.Run(context.Background())
		os.Exit(0) // not reached: the panic is not caught
	}
	os.Exit(m.Run())
}

func TestPanicCrashesWithAMarker(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), panicHelper+"=1")
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 2 {
		t.Fatalf("got exit code %d (%v), want Go's own for a panic, 2\n%s", code, err, out)
	}
	marker, trace, found := strings.Cut(string(out), "panic: index out of reach")
	if !found {
		t.Fatalf("got\n%swant a panic", out)
	}
	for _, want := range []string{"level=ERROR", "component=kube-scheduler", `panic="index out of reach"`} {
		if !strings.Contains(marker, want) {
			t.Errorf("before the trace: got %q, want %s", marker, want)
		}
	}
	if !strings.Contains(trace, "process_test.go") {
		t.Errorf("got trace\n%swant the line that panicked", trace)
	}
}

func TestNoGoroutinesAreLeft(t *testing.T) {
	for range 20 {
		g, log := newGroup()
		d := newDiary()
		etcd := g.Add(d.server("etcd", 0, 0))
		g.Add(d.server("kcm", 0, 0), g.Add(d.server("api", 0, 0), etcd))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		for ok := false; !ok; {
			changed := g.Changed()
			if ok, _ = g.Ready(); !ok {
				<-changed
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatalf("got %v, want nil\n%s", err, log)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for left := ofThisPackage(); left != ""; left = ofThisPackage() {
		if time.Now().After(deadline) {
			t.Fatalf("goroutines are left:\n%s", left)
		}
		runtime.Gosched()
	}
}

// ofThisPackage returns the stacks that contain code of this package, except the
// test's own.
func ofThisPackage() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var ours []string
	for stack := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(stack, "/supervise.") && !strings.Contains(stack, "testing.tRunner") {
			ours = append(ours, stack)
		}
	}
	return strings.Join(ours, "\n\n")
}
