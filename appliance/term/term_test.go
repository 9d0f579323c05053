package term

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
)

// An exit of any goroutine that the term has started ends the term, and it alone.
func TestExitEndsItsTerm(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(ctx context.Context) error
	}{
		{"on the term's first goroutine", func(context.Context) error {
			Current().Leave(&Exit{Reason: ReasonExit, Where: "a.go:1", Cause: "no resources"})
			return nil
		}},
		{"on a goroutine of a library", func(ctx context.Context) error {
			var wg sync.WaitGroup
			wg.Go(func() {
				var inner sync.WaitGroup
				inner.Go(func() { Current().Leave(&Exit{Reason: ReasonExit, Where: "a.go:1", Cause: "no resources"}) })
				inner.Wait()
			})
			wg.Wait() // the deferred functions of the goroutine have run
			<-ctx.Done()
			return errors.New("what the program says about its end")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mine, other := New(t.Context(), "kube-scheduler"), New(t.Context(), "kube-controller-manager")
			defer mine.Close()
			defer other.Close()
			fenced := 0
			mine.OnExit(func() { fenced++ })
			stop := make(chan struct{})
			others := other.Go(func(ctx context.Context) error { <-stop; return ctx.Err() })
			err := <-mine.Go(tt.f)
			var exit *Exit
			if !errors.As(err, &exit) || exit.Error() != "ended itself: no resources (at a.go:1)" {
				t.Errorf("got %v, want the exit", err)
			}
			if mine.Context().Err() == nil || fenced != 1 {
				t.Errorf("context ended: %v, fenced %d times; want true and once", mine.Context().Err() != nil, fenced)
			}
			close(stop)
			if err := <-others; err != nil {
				t.Errorf("the other term: got %v, want no error", err)
			}
		})
	}
}

// The last of several exits does not hide the first.
func TestFirstExitCounts(t *testing.T) {
	mine := New(t.Context(), "kube-scheduler")
	defer mine.Close()
	err := <-mine.Go(func(context.Context) error {
		var wg sync.WaitGroup
		wg.Go(func() { Current().Leave(&Exit{Reason: ReasonFatal, Cause: "first"}) })
		wg.Wait()
		panic("second")
	})
	var exit *Exit
	if !errors.As(err, &exit) || exit.Cause != "first" {
		t.Errorf("got %v, want the first", err)
	}
}

func TestPanicIsAnExit(t *testing.T) {
	mine := New(t.Context(), "kube-scheduler")
	defer mine.Close()
	err := <-mine.Go(func(context.Context) error {
		var none *Exit
		return errors.New(none.Cause)
	})
	var exit *Exit
	if !errors.As(err, &exit) || exit.Reason != ReasonPanic || !strings.Contains(exit.Cause, "nil pointer") || !strings.Contains(exit.Where, "term_test.go:") || !strings.Contains(exit.Stack, "TestPanicIsAnExit") {
		t.Errorf("got %v, want a panic with its place", err)
	}
}

// A goroutine outside of every term is not attributed, even while terms are open.
func TestNoTerm(t *testing.T) {
	mine := New(t.Context(), "kube-scheduler")
	defer mine.Close()
	if got := Current(); got != nil {
		t.Errorf("got term %d of %s, want none", got.Number(), got.Component())
	}
}

// A goroutine that outlives its term ends itself, and not the term that has come since.
func TestExitAfterTheTerm(t *testing.T) {
	first := New(t.Context(), "kube-scheduler")
	release, gone := make(chan struct{}), make(chan struct{})
	<-first.Go(func(context.Context) error {
		go func() {
			defer close(gone)
			<-release
			Current().Leave(&Exit{Reason: ReasonExit})
			t.Error("the goroutine went on")
		}()
		return nil
	})
	first.Close()
	second := New(t.Context(), "kube-scheduler")
	defer second.Close()
	close(release)
	<-gone
	if second.Exited() != nil || second.Context().Err() != nil {
		t.Error("the exit of an earlier term has ended this one")
	}
}

func TestResultWithoutAnExit(t *testing.T) {
	mine, failed := New(t.Context(), "kube-scheduler"), errors.New("failed")
	defer mine.Close()
	if err := <-mine.Go(func(context.Context) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v, want the program's own error", err)
	}
}
