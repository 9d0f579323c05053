package upgrade

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/status"
)

const (
	pollEvery = 500 * time.Millisecond
	// patience bounds the wait for what a verb cannot bring about: a leader, and an answer of the
	// kthwd here. An election, or a restart, is over before.
	patience = 20 * time.Second
	// rewrites bounds the wait for a record that could not be written: kthwd tries again every 5 s.
	rewrites = 12 * time.Second
)

type looker = func(context.Context) (View, error)

// await looks at the cluster until left names no controller. It ends early when the kthwd here has
// ended, and when for some time nothing goes on that does not go on by itself.
func await(ctx context.Context, look looker, left func(View) []string) error {
	var why error
	var blocked time.Time // since when something has been in the way; zero while nothing is
	for {
		v, err := look(ctx)
		var waiting []string
		if err == nil {
			if waiting = left(v); len(waiting) == 0 {
				return nil
			}
			err = v.inTheWay()
		}
		if ctx.Err() == nil || why == nil { // the last look fails because its time is over
			why = err
		}
		switch {
		case why == nil:
			blocked = time.Time{}
		case blocked.IsZero():
			blocked = time.Now()
		}
		limit := patience
		if len(v.unwritten()) > 0 {
			limit = rewrites
		}
		if errors.Is(why, status.ErrNotRunning) || !blocked.IsZero() && time.Since(blocked) > limit {
			return why
		}
		select {
		case <-ctx.Done():
			if why == nil {
				why = fmt.Errorf("still waiting for %s", strings.Join(append([]string{and(waiting)}, v.troubles()...), "; "))
			}
			return why
		case <-time.After(pollEvery):
		}
	}
}

// inTheWay is an error with what must be mended before a verb goes on.
func (v View) inTheWay() error {
	unwritten := v.unwritten()
	switch {
	case v.Leaderless:
		return advice.With(errors.New(strings.Join(v.troubles(), "; ")), "start what is named")
	case len(unwritten) > 0:
		return advice.With(errors.New(strings.Join(unwritten, "; ")), "free room on its disk, or give kthwd's user the directory")
	}
	return nil
}

// goOn is an error of a verb that was begun, with the way on after the advice of its cause.
func goOn(said string, cause error, how string) error {
	if do, ok := advice.Of(cause); ok {
		how = do + "; then " + how
	}
	return advice.With(fmt.Errorf("%s: %w", said, cause), how)
}
