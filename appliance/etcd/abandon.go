package etcd

import (
	"context"
	"time"

	"kthwd/appliance/etcd/requests"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/supervise"
)

// Abandoned returns a channel that is closed once all requests fail: after Abandon, or in a
// stop on a full disk.
func (e *Member) Abandoned() <-chan struct{} { return e.requests.Failed() }

// Abandon makes all waiting and later requests to etcd fail if there is no leader and none
// is elected within patience. Otherwise a stop of the API server would wait for those
// requests, and for its own last writes, beyond its budget. Abandon blocks until there is
// a leader, until patience is over, or until ctx ends.
func (e *Member) Abandon(ctx context.Context, patience time.Duration) {
	server := e.Running()
	if server == nil {
		return
	}
	for end := time.Now().Add(patience); time.Now().Before(end); supervise.Sleep(ctx, ReadyPoll) {
		if view.LeaderOf(server) != 0 || ctx.Err() != nil {
			return
		}
	}
	e.log.Warn("stopping without a quorum: requests that wait for one fail now")
	e.requests.Fail(requests.ErrNoQuorum)
}
