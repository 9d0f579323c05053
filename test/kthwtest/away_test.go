package kthwtest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// Two absences are two, however many questions fail meanwhile, and a slow answer is none.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("connection refused")
		script := []error{nil, refused, refused, nil, context.DeadlineExceeded, nil, refused, refused, refused, nil, nil}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		asked := 0
		got := follow(ctx, func(context.Context) error {
			if asked == len(script) {
				stop()
				return nil
			}
			asked++
			return script[asked-1]
		})
		if want := (Away{2, 80 * time.Millisecond}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}
