package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	componentbaseconfig "k8s.io/component-base/config"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/term"
)

// newLease makes a lease with upstream's timings, 15 s and 10 s, hence a margin of 5 s.
func newLease() *Lease {
	return New(Config{Component: program.Scheduler, Fence: &Fence{}, Log: slog.New(slog.DiscardHandler), Election: componentbaseconfig.LeaderElectionConfiguration{
		LeaseDuration: metav1.Duration{Duration: 15 * time.Second}, RenewDeadline: metav1.Duration{Duration: 10 * time.Second},
	}})
}

// Here a term ends in ways that a healthy program never shows. test/fault has the terms of
// real programs against a real API server.
func TestTermEnds(t *testing.T) {
	failed := errors.New("controller shutdown timeout reached")
	for _, tt := range []struct {
		name  string
		lost  bool                        // the lease is lost after a second
		host  string                      // the API server that the component uses
		term  func(context.Context) error // the program; nil does not stop
		want  error
		after time.Duration
	}{
		{"lost, and stops at once", true, "", func(ctx context.Context) error { <-ctx.Done(); return nil }, errLeaseLost, time.Second},
		{"lost, and takes 4 s", true, "", slowly(4 * time.Second), errLeaseLost, 5 * time.Second},
		{"lost, and does not stop", true, "", nil, &stuckTermError{program.Scheduler, 5 * time.Second}, 6 * time.Second},
		{"lost, behind another's fence", true, "https://10.0.1.48:6443", nil, &stuckTermError{program.Scheduler, 5 * time.Second}, 6 * time.Second},
		{"lost, behind the fence, and takes 40 s", true, "https://127.0.0.1:6443", slowly(40 * time.Second), errLeaseLost, 41 * time.Second},
		{"lost, behind the fence, and does not stop", true, "https://127.0.0.1:6443", nil, &stuckTermError{program.Scheduler, time.Minute}, 61 * time.Second},
		{"lost, and exits for that", true, "", exitsAtItsEnd(4 * time.Second), errLeaseLost, 5 * time.Second},
		{"exits, and loses its lease", true, "", exits(4 * time.Second), exit, 4 * time.Second},
		{"ends by itself", false, "", func(context.Context) error { return failed }, failed, 0},
		{"exits, and stops at once", false, "", exits(0), exit, 0},
		{"exits, and takes 40 s", false, "", exits(40 * time.Second), exit, 40 * time.Second},
		{"exits, and does not stop", false, "", exits(time.Hour), &stuckTermError{program.Scheduler, time.Minute}, time.Minute},
		{"exits, behind the fence, and does not stop", false, "https://127.0.0.1:6443", exits(time.Hour), term.ErrStillRunning, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				work := term.New(t.Context(), program.Scheduler)
				defer work.Close()
				over, release := make(chan struct{}), make(chan struct{})
				run := tt.term
				if run == nil {
					run = func(context.Context) error { <-release; return nil }
				}
				if tt.lost {
					time.AfterFunc(time.Second, func() { close(over) })
				}
				begun := time.Now()
				l := newLease()
				l.fence, l.client = &Fence{server: "https://127.0.0.1:6443"}, &rest.Config{Host: tt.host}
				kept := false
				err := l.serve(&campaign{over: over, keep: func() { kept = true }}, work, run)
				if took := time.Since(begun); took != tt.after {
					t.Errorf("ended after %v; want %v", took, tt.after)
				}
				close(release) // a program that does not stop must end within the bubble
				time.Sleep(2 * time.Hour)
				if left := tt.after == time.Minute || errors.As(err, new(*stuckTermError)); kept != left {
					t.Errorf("lease left to expire: %v, want %v", kept, left)
				}
				var got *stuckTermError
				if errors.As(tt.want, &got) != errors.As(err, &got) || (got == nil && !errors.Is(err, tt.want)) {
					t.Errorf("got %v; want %v", err, tt.want)
				}
			})
		})
	}
}

// exit is the error of a term that exits ends.
var exit = &term.Exit{Reason: term.ReasonExit, Where: "cache.go:569"}

// exits is a program that exits at once and stops d after the end of its context.
func exits(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		go func() { term.Current().Leave(exit) }()
		return slowly(d)(ctx)
	}
}

// exitsAtItsEnd is a program that exits when its context ends, and stops d later.
func exitsAtItsEnd(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		return exits(d)(ctx)
	}
}

// slowly is a program that stops d after the end of its context.
func slowly(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		<-time.After(d) // in the bubble's time
		return nil
	}
}

// A stuck term ends the component for good, and the group then ends the process.
func TestStuckTermIsNotRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLease()
		l.election.LeaderElect = false
		terms := 0
		prepare := func(context.Context, string) (func(context.Context) error, error) {
			terms++
			return func(context.Context) error { return &stuckTermError{program.Scheduler, l.margin()} }, nil
		}
		var stuck *stuckTermError
		if err := l.Run(t.Context(), func() {}, prepare); !errors.As(err, &stuck) {
			t.Errorf("got %v; want a stuck term", err)
		}
		if terms != 1 {
			t.Errorf("got %d terms; want 1", terms)
		}
	})
}

// A failed term is followed by another, after pauses that double up to 15 s.
func TestFailedTermIsBegunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLease()
		l.election.LeaderElect = false
		ctx, stop := context.WithCancel(t.Context())
		var begun []time.Time
		prepare := func(context.Context, string) (func(context.Context) error, error) {
			if begun = append(begun, time.Now()); len(begun) == 9 {
				stop()
			}
			return func(context.Context) error { return errors.New("no") }, nil
		}
		if err := l.Run(ctx, func() {}, prepare); err != nil {
			t.Errorf("got %v; want nil after a stop", err)
		}
		if first := begun[1].Sub(begun[0]); first != firstTermPause {
			t.Errorf("got a first pause of %v; want %v", first, firstTermPause)
		}
		if last := begun[8].Sub(begun[7]); last != lastTermPause {
			t.Errorf("got a last pause of %v; want %v", last, lastTermPause)
		}
	})
}

// After five terms that could not be stopped the process ends, and says why.
func TestLeaksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLease()
		l.election.LeaderElect = false
		l.record = NewRecord(program.Scheduler, "c0")
		l.fence.server, l.client = "https://127.0.0.1:6443", &rest.Config{Host: "https://127.0.0.1:6443"}
		terms := 0
		prepare := func(_ context.Context, server string) (func(context.Context) error, error) {
			lasts := 10 * time.Minute
			if terms++; terms == 2 {
				lasts = 30 * time.Minute
			}
			if own := strings.HasPrefix(server, "https://127.0.0.1:6443/kthwd-term/"); own != (terms > 1) {
				t.Errorf("term %d has the server %q; want one of its own after the first leak", terms, server)
			}
			return func(context.Context) error {
				time.Sleep(lasts)
				return fmt.Errorf("controller shutdown timeout reached; %w", term.ErrStillRunning)
			}, nil
		}
		err := l.Run(t.Context(), func() {}, prepare)
		if !errors.Is(err, term.ErrStillRunning) || !strings.Contains(err.Error(), "5 terms within 1h0m0s") {
			t.Errorf("got %v; want an error that says why", err)
		}
		if terms != 6 || l.record.Lease().Leaked != 6 {
			t.Errorf("got %d terms, %d leaked; want 6, of which the first was too long ago", terms, l.record.Lease().Leaked)
		}
	})
}

// Without a fence nothing keeps what was left behind from writing: the process ends at once.
func TestLeakWithoutAFence(t *testing.T) {
	l := newLease()
	l.election.LeaderElect = false
	prepare := func(context.Context, string) (func(context.Context) error, error) {
		return func(context.Context) error { return term.ErrStillRunning }, nil
	}
	if err := l.Run(t.Context(), func() {}, prepare); !errors.Is(err, term.ErrStillRunning) {
		t.Errorf("got %v; want an error", err)
	}
}

// A component that fails again and again does not look ready in between.
func TestReadyIsProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLease()
		l.election.LeaderElect = false
		var ready []time.Duration
		terms, lasts, begun := 0, []time.Duration{10 * time.Second, 12 * time.Second, time.Minute}, time.Time{}
		prepare := func(context.Context, string) (func(context.Context) error, error) {
			begun = time.Now()
			return func(ctx context.Context) error {
				if terms++; terms > len(lasts) {
					<-ctx.Done()
					return nil
				}
				time.Sleep(lasts[terms-1])
				return errors.New("failed")
			}, nil
		}
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
		defer stop()
		if err := l.Run(ctx, func() { ready = append(ready, time.Since(begun)) }, prepare); err != nil {
			t.Fatal(err)
		}
		// The second of the terms did not last for the 15 s that it needed.
		if want := []time.Duration{0, 18 * time.Second, time.Minute}; !slices.Equal(ready, want) {
			t.Errorf("got ready after %v; want %v", ready, want)
		}
	})
}

// A term that was left behind does not give its lease back.
func TestLeaseIsLeftToExpire(t *testing.T) {
	atBoot(t)
	f := &Fence{limit: 10 * time.Second}
	inner := &fakeLock{err: errors.New("written")}
	lock := f.lock(inner, func(error) {})
	lock.holder = inner.Identity()
	release := resourcelock.LeaderElectionRecord{}
	if err := lock.Update(t.Context(), release); err == nil {
		t.Error("a release is not written")
	}
	lock.keep.Store(true)
	f.until.Store(int64(bootTime() + time.Second))
	if err := lock.Update(t.Context(), release); err != nil || f.left() > 0 {
		t.Errorf("got %v with %v left; want nothing written, and the fence closed", err, f.left())
	}
}

// The holder of the lease turns a component into a standby only if it has not won itself.
func TestStandbyIsWhoHasNotWon(t *testing.T) {
	won, open := make(chan struct{}), make(chan struct{})
	close(won)
	for _, tt := range []struct {
		name   string
		holder string
		won    <-chan struct{}
		want   bool
	}{
		{"another's, before the term", "c1", open, true},
		{"another's, in a term", "c1", won, false},
		{"ours", "c0", open, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, got := newLease(), false
			l.identity = "c0"
			l.newLeader(tt.holder, tt.won, supervise.Reporter{}, func() { got = true })
			if got != tt.want {
				t.Errorf("standby: got %v, want %v", got, tt.want)
			}
		})
	}
}
