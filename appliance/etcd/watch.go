package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/supervise"
)

const ReadyPoll = 20 * time.Millisecond

const StopBridges = 5 * time.Second

// QuorumPoll is how often the member is asked whether it knows a leader: an
// atomic load, so that watching costs nothing.
const QuorumPoll = 500 * time.Millisecond

// countEvery is how many polls go by between two looks at the membership.
const countEvery = 10

// watch calls ready at the first quorum, reports a lost and a regained one, and
// ends when ctx does or when etcd has ended by itself.
func (e *Member) watch(ctx context.Context, server *embed.Etcd, report supervise.Reporter, ready func()) error {
	ticks := 0
	tick := time.NewTicker(QuorumPoll)
	defer tick.Stop()
	first := server.Server.ReadyNotify()
	admitted := make(chan error, 1)
	state := quorumState{etcd: e, report: report}
	var asks sync.WaitGroup
	defer asks.Wait()
	asking, stopAsking := context.WithCancel(ctx)
	defer stopAsking()
	go e.lookForStrangers(asking, server) // not waited for: it may hang with the member, see gone
	for {
		select {
		case <-first:
			first = nil
			asks.Go(func() { admitted <- e.admission(asking, server) })
		case err := <-admitted:
			if err != nil {
				e.close(server)
				return err
			}
			ready()
			state.begun = true
			e.HadQuorum.Store(true)
			asks.Go(func() { e.followHandOvers(asking, server) })
			e.count(server)
		case <-tick.C:
			if len(e.fatal) > 0 {
				continue // what follows may wait for a lock that is never given back
			}
			leader := server.Server.Leader() != 0
			e.listen(leader)
			state.check(leader)
			e.fsyncs.sample(time.Now())
			if ticks++; state.begun && ticks%countEvery == 0 {
				e.count(server)
			}
		case <-e.leave:
			asks.Go(func() { e.TransferLeadership(asking, server, slog.LevelInfo) })
		case <-ctx.Done():
			e.close(server)
			return nil
		case err := <-e.fatal:
			if strings.Contains(err.Error(), metItsRemoval) {
				return e.gone(server)
			}
			return err // a goroutine of etcd is parked in its logger: Close would wait for it for ever
		case err := <-server.Err():
			if isStopping(server) { // its listeners notice first, and say less
				return e.gone(server)
			}
			e.close(server)
			return err
		case <-server.Server.StopNotify():
			return e.gone(server)
		}
	}
}

// isStopping tells whether the member stops by itself, which it does when the
// others say that it was removed, and only then (etcdserver/server.go:run).
func isStopping(server *embed.Etcd) bool {
	select {
	case <-server.Server.StoppingNotify():
		return true
	default:
		return false
	}
}

// metItsRemoval is what a goroutine of etcd dies of that looks for the member it
// belongs to, with the lock on all members held (api/membership/cluster.go:
// IsLocalMemberLearner; api/v3rpc/maintenance.go:Status calls it).
const metItsRemoval = "failed to find local ID in cluster members"

// gone closes what can be closed of a member that was removed, and says how to
// bring the controller back. Its data are void, so nothing is lost by what cannot.
func (e *Member) gone(server *embed.Etcd) error {
	e.mu.Lock()
	e.server = nil // nobody is to wait for a lock of it
	e.mu.Unlock()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		server.Close()
	}()
	select {
	case <-closed:
	case <-e.fatal:
	case <-time.After(StopBridges):
	}
	os.Remove(socketPath(e.Cfg))
	return advice.With(fmt.Errorf("this controller, %s, was removed from the cluster", e.Cfg.Name),
		"to bring it back: kthwd member add NAME ADDRESS on another controller, then kthwd join with --replace-data here")
}

func (e *Member) admission(ctx context.Context, server *embed.Etcd) error {
	if e.Admit != nil {
		if err := e.Admit(ctx, server); err != nil {
			return err
		}
	}
	e.awaitVote(ctx, server)
	return nil
}

// awaitVote returns when this member is a voter, or ctx ends. Clients are refused by
// a learner, so an API server must not be built on one.
func (e *Member) awaitVote(ctx context.Context, server *embed.Etcd) {
	if !Learns(server) {
		return
	}
	begun := time.Now()
	e.Log.Info("this member is a learner: catching up with the others")
	for Learns(server) && ctx.Err() == nil {
		supervise.Sleep(ctx, ReadyPoll)
	}
	if ctx.Err() == nil {
		e.Log.Info("caught up: this member votes now", "took", time.Since(begun).Round(time.Millisecond))
	}
}

func (e *Member) count(server *embed.Etcd) {
	if e.Counted != nil {
		e.Counted(server)
	}
}
