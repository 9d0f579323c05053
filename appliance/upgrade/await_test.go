package upgrade

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/status"
)

// A verb waits while something goes on by itself, and ends with the cause when nothing does.
func TestAwait(t *testing.T) {
	good, silent := see(open, "", reached), see(open, "", reached.but(func(m *member) { m.away = "connection refused" }))
	leaderless, full := see(open, "", reached), see(open, "", reached)
	leaderless.Leaderless = true
	full.Controllers[0].Unwritten = "no space left on device"
	ended := advice.With(fmt.Errorf("%w: the last run: killed", status.ErrNotRunning), "start it")
	const limit = time.Minute
	for _, tt := range []struct {
		name  string
		v     View
		err   error
		lasts time.Duration // how long it is so, before all is well
		want  string        // part of the error; "" for none
		takes time.Duration // at most
	}{
		{"all is well", good, nil, 0, "", 0},
		{"an election", leaderless, nil, patience / 2, "", patience},
		{"no leader", leaderless, nil, limit, "etcd has no leader", patience + 2*pollEvery},
		{"no answer here", View{}, errors.New("nothing came back"), limit, "nothing came back", patience + 2*pollEvery},
		{"the kthwd here has ended", View{}, ended, limit, "the last run: killed", 0},
		{"no room for a record", full, nil, limit, "c0 cannot write member.json: no space left on device", rewrites + 2*pollEvery},
		{"room for a record again", full, nil, rewrites / 2, "", rewrites},
		{"a controller is away", silent, nil, 2 * limit, "still waiting for c0; c0 does not answer: connection refused", limit},
		{"a controller was away", silent, nil, limit / 2, "", limit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				begun := time.Now()
				err := await(ctx, func(context.Context) (View, error) {
					if time.Since(begun) >= tt.lasts {
						return good, nil
					}
					return tt.v, tt.err
				}, func(v View) []string {
					if time.Since(begun) >= tt.lasts {
						return nil
					}
					return []string{"c0"}
				})
				if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				if took := time.Since(begun); took > tt.takes {
					t.Errorf("it took %v, want %v at most", took, tt.takes)
				}
			})
		})
	}
}

// The advice of the cause comes first.
func TestGoOn(t *testing.T) {
	err := goOn("the way back is not ready", advice.With(errors.New("it has ended"), "start it"), again)
	if do, _ := advice.Of(err); err.Error() != "the way back is not ready: it has ended" || do != "start it; then "+again {
		t.Errorf("got %v, %q", err, do)
	}
}
