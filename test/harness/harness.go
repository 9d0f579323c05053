// Package harness is shared by the tests of single packages: waiting for a condition, a
// log that can be read while it is written, and a component under test.
//
//	log := &harness.Log{}
//	r := harness.Start(t, New(Config{Log: log.Logger(slog.LevelInfo)}))
//	r.WaitReady(10 * time.Second)
//	harness.WaitFor(t, "first probe", 10*time.Second, func() error { … })
//	r.Stop() // at the end of the test at the latest
//
// It imports the standard library only, so the tests of light packages stay light. Tests
// of the real binary use package kthwtest.
package harness

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience limits the end of a component. No test that passes waits as long.
const patience = time.Minute

// WaitFor polls the condition until it returns nil: at once, and then after the pauses of
// Pause. It fails the test, with the name and the last error, when that takes longer than
// within. It also works in a t.Cleanup.
func WaitFor(t testing.TB, what string, within time.Duration, condition func() error) {
	t.Helper()
	over := time.NewTimer(within) // t.Context has ended when clean-up begins
	defer over.Stop()
	for begun := time.Now(); ; {
		asked := time.Now()
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-time.After(Pause(time.Since(begun), time.Since(asked))):
		case <-over.C:
			t.Fatalf("waiting for %s: not within %v: %v", what, within, err)
		}
	}
}

// Pause returns how long to wait before a condition is asked again, which has been polled
// for some time, and whose last answer took that long. A wait becomes a twentieth longer
// at most, and a condition that runs a program or asks a whole cluster leaves most of the
// processors' time to what it waits for.
func Pause(polled, took time.Duration) time.Duration {
	const shortest, longest = 5 * time.Millisecond, 500 * time.Millisecond
	return min(max(shortest, polled/20, 2*took), longest)
}

// Spin runs a busy loop until its thread has had this much CPU time, and returns how long
// that took. It is the measure for a process that must not be busy meanwhile: a busy
// machine gives less to both.
func Spin(t testing.TB, use time.Duration) (took time.Duration) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for begun, before := time.Now(), threadTime(t); ; {
		for range 1 << 16 { // not a system call each time
		}
		if threadTime(t)-before >= use {
			return time.Since(begun)
		}
	}
}

// threadTime is the CPU time that the calling thread has had.
func threadTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_THREAD, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// CheckRefusal checks that err contains want, and that its hint contains hint. If want is
// "", err must be nil.
func CheckRefusal(t testing.TB, err error, want, hint string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("got %v, want no error", err)
		}
		return
	}
	var h interface{ Hint() string }
	if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &h) || !strings.Contains(h.Hint(), hint) {
		t.Errorf("got %v\nhint %v\nwant %q\nhint %q", err, h, want, hint)
	}
}

// Log is a log that can be read while it is written. The zero value is empty.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Logger returns a logger that writes lines of text to l, from a level on.
func (l *Log) Logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level}))
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns the log so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count returns the number of lines at a level, such as "WARN", that contain text.
func (l *Log) Count(level, text string) (n int) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, "level="+level) && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// Component is what a test runs: it blocks in Run until the context ends.
type Component interface {
	Run(ctx context.Context, ready func()) error
}

// Running is a component whose Run was started.
type Running struct {
	Ready <-chan struct{} // closed by the first call of ready

	t       testing.TB
	readies atomic.Int32
	cancel  context.CancelFunc
	ended   chan struct{}
	err     error // of Run; read it after ended
	stopped sync.Once
}

// Start starts the component's Run, and stops it at the end of the test.
func Start(t testing.TB, c Component) *Running {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready := make(chan struct{})
	r := &Running{Ready: ready, t: t, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		r.err = c.Run(ctx, func() {
			if r.readies.Add(1) == 1 {
				close(ready)
			}
		})
	}()
	t.Cleanup(r.Stop)
	return r
}

// WaitReady waits until the component has called ready. It fails the test when Run
// returns first or that takes longer than within.
func (r *Running) WaitReady(within time.Duration) {
	r.t.Helper()
	select {
	case <-r.Ready:
	case <-r.ended:
		r.t.Fatalf("Run returned %v before ready", r.err)
	case <-time.After(within):
		r.t.Fatalf("not ready within %v", within)
	}
}

// IsReady reports whether the component has called ready.
func (r *Running) IsReady() bool { return r.readies.Load() > 0 }

// Stop ends Run, which must not have returned before and must return nil now. It also
// holds that ready was called at most once. Further calls do nothing.
func (r *Running) Stop() {
	r.t.Helper()
	r.stopped.Do(func() {
		defer r.cancel()
		select {
		case <-r.ended:
			r.t.Errorf("Run returned %v before the stop", r.err)
			return
		default:
		}
		r.cancel()
		select {
		case <-r.ended:
			if r.err != nil {
				r.t.Errorf("Run = %v; want nil", r.err)
			}
		case <-time.After(patience):
			r.t.Error("Run did not return")
		}
		if n := r.readies.Load(); n > 1 {
			r.t.Errorf("ready was called %d times", n)
		}
	})
}
