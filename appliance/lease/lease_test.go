package lease

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	componentbaseconfig "k8s.io/component-base/config"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
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
		{"ends by itself", false, "", func(context.Context) error { return failed }, failed, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				work, stop := context.WithCancel(t.Context())
				defer stop()
				over, release := make(chan struct{}), make(chan struct{})
				term := tt.term
				if term == nil {
					term = func(context.Context) error { <-release; return nil }
				}
				if tt.lost {
					time.AfterFunc(time.Second, func() { close(over) })
				}
				begun := time.Now()
				l := newLease()
				l.fence, l.client = &Fence{server: "https://127.0.0.1:6443"}, &rest.Config{Host: tt.host}
				err := l.serve(&campaign{over: over}, work, stop, term)
				if took := time.Since(begun); took != tt.after {
					t.Errorf("ended after %v; want %v", took, tt.after)
				}
				close(release) // the program that does not stop must end within the bubble
				var got *stuckTermError
				if errors.As(tt.want, &got) != errors.As(err, &got) || (got == nil && !errors.Is(err, tt.want)) {
					t.Errorf("got %v; want %v", err, tt.want)
				}
			})
		})
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
		prepare := func(context.Context) (func(context.Context) error, error) {
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
		prepare := func(context.Context) (func(context.Context) error, error) {
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
