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

// ReadyPoll is how often a start or a stop looks whether what it waits for is there.
const ReadyPoll = 20 * time.Millisecond

// QuorumPoll is how often the member is checked for a leader: an atomic load, so that
// watching costs nothing.
const QuorumPoll = 500 * time.Millisecond

// closeLimit is how long a removed member may take to close.
const closeLimit = 5 * time.Second

// membershipEvery is how many polls pass between two calls of OnMembership.
const membershipEvery = 10

// watch is the state of Member.watch.
type watch struct {
	member   *Member
	server   *embed.Etcd
	ready    func()
	state    quorumState
	polls    int
	admitted chan error // the verdict of admission

	tasks   sync.WaitGroup  // that the loop waits for at its end
	running context.Context // of the tasks
}

// watch calls ready at the first quorum, reports a lost and a regained one, and
// ends when ctx does or when etcd has ended by itself.
func (e *Member) watch(ctx context.Context, server *embed.Etcd, report supervise.Reporter, ready func()) error {
	w := &watch{
		member: e, server: server, ready: ready,
		state: quorumState{etcd: e, report: report}, admitted: make(chan error, 1),
	}
	poll := time.NewTicker(QuorumPoll)
	defer poll.Stop()
	defer w.tasks.Wait()
	var stopTasks context.CancelFunc
	w.running, stopTasks = context.WithCancel(ctx)
	defer stopTasks()
	go e.lookForStrangers(w.running, server) // not waited for: it may hang with the member, see gone
	firstQuorum := server.Server.ReadyNotify()
	for {
		select {
		case <-firstQuorum:
			firstQuorum = nil
			w.tasks.Go(func() { w.admitted <- e.admission(w.running, server) })
		case err := <-w.admitted:
			if err != nil {
				e.close(server)
				return err
			}
			w.begin()
		case <-poll.C:
			w.poll()
		case <-e.leave:
			w.tasks.Go(func() { e.TransferLeadership(w.running, server, slog.LevelInfo) })
		case <-ctx.Done():
			e.close(server)
			return nil
		case err := <-e.fatal:
			return w.died(err)
		case err := <-server.Err():
			return w.failed(err)
		case <-server.Server.StopNotify():
			return e.gone(server)
		}
	}
}

// begin is called once, when this controller belongs to the cluster and may vote.
func (w *watch) begin() {
	w.ready()
	w.state.begun = true
	w.member.hadQuorum.Store(true)
	w.tasks.Go(func() { w.member.followTransfers(w.running, w.server) })
	w.member.reportMembership(w.server)
}

// poll looks for a change of quorum, and takes samples.
func (w *watch) poll() {
	e := w.member
	if len(e.fatal) > 0 {
		return // the rest may wait for a lock that is never given back
	}
	leader := leaderOf(w.server) != 0
	e.listen(leader)
	w.state.check(leader)
	e.fsyncs.Sample(time.Now())
	if w.polls++; w.state.begun && w.polls%membershipEvery == 0 {
		e.reportMembership(w.server)
	}
}

// died ends the watch after a fatal line in etcd's log. Unless the member was removed,
// nothing is closed: a goroutine of etcd is parked in its logger, and Close would wait
// for it for ever.
func (w *watch) died(err error) error {
	if strings.Contains(err.Error(), metItsRemoval) {
		return w.member.gone(w.server)
	}
	return err
}

// failed ends the watch after an error of a listener. The listeners notice a removal
// before the server does, with an error that does not name it.
func (w *watch) failed(err error) error {
	if isStopping(w.server) {
		return w.member.gone(w.server)
	}
	w.member.close(w.server)
	return err
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
	e.gateway.Close()
	go func() {
		defer close(closed)
		server.Close()
	}()
	select {
	case <-closed:
	case <-e.fatal:
	case <-time.After(closeLimit):
	}
	os.Remove(socketPath(e.cfg))
	return advice.With(fmt.Errorf("this controller, %s, was removed from the cluster", e.cfg.Name),
		"to bring it back: kthwd member add NAME ADDRESS on another controller, then kthwd join with --replace-data here")
}

func (e *Member) admission(ctx context.Context, server *embed.Etcd) error {
	if e.admit != nil {
		if err := e.admit(ctx, e, server); err != nil {
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
	e.log.Info("this member is a learner: catching up with the others")
	for Learns(server) && ctx.Err() == nil {
		supervise.Sleep(ctx, ReadyPoll)
	}
	if ctx.Err() == nil {
		e.log.Info("caught up: this member votes now", "took", time.Since(begun).Round(time.Millisecond))
	}
}

func (e *Member) reportMembership(server *embed.Etcd) {
	if e.onMembership != nil {
		e.onMembership(server)
	}
}
