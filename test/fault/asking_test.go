package fault

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// shares reports whether tests of other packages run at the same time, as in make test. The
// end-to-end tests and the soaks have the processors for themselves.
var shares = os.Getenv("KTHWD_E2E")+os.Getenv("KTHWD_SOAK")+os.Getenv("KTHWD_KILLS") == ""

// breathe is the pause of a client that asks all the time while something changes. Without one
// it takes the processors from what it watches and from other tests. The end-to-end tests count
// the requests of a second, and have none.
func breathe(ctx context.Context) {
	if shares {
		pause(ctx, 25*time.Millisecond)
	}
}

// asking repeats requests, each kind beside the others, until it is checked or the test ends.
type asking struct {
	stop         func()
	done, failed atomic.Int64
	said         atomic.Value
}

func startAsking(t *testing.T, requests ...func(context.Context) error) *asking {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &asking{}
	var all sync.WaitGroup
	for _, request := range requests {
		all.Go(func() {
			for ; ctx.Err() == nil; breathe(ctx) {
				err := request(ctx)
				if ctx.Err() != nil {
					return
				}
				if a.done.Add(1); err != nil {
					a.failed.Add(1)
					a.said.Store(err.Error())
				}
			}
		})
	}
	a.stop = func() { cancel(); all.Wait() }
	t.Cleanup(a.stop)
	return a
}

// check ends them. None may have failed.
func (a *asking) check(t *testing.T) {
	t.Helper()
	a.stop()
	if a.failed.Load() > 0 || a.done.Load() == 0 {
		t.Errorf("%d of %d requests failed, such as: %v", a.failed.Load(), a.done.Load(), a.said.Load())
	}
	t.Logf("%d requests, %d failed", a.done.Load(), a.failed.Load())
}
