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
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/supervise"
)

// ReadyPoll is how often a start or a stop checks the condition it waits for.
const ReadyPoll = 20 * time.Millisecond

// QuorumPoll is how often the member is checked for a leader. The check is an atomic
// load and costs next to nothing.
const QuorumPoll = 500 * time.Millisecond

// closeLimit is how long a removed member may take to close.
const closeLimit = 5 * time.Second

// membershipEvery is the number of polls from one call of OnMembership to the next.
const membershipEvery = 10

// watch is the state of Member.watch.
type watch struct {
	member   *Member
	server   *embed.Etcd
	ready    func()
	state    quorumState
	polls    int
	admitted chan error // the result of admission

	tasks   sync.WaitGroup  // all end before Member.watch returns
	running context.Context // the tasks' context
}

// watch calls ready once this controller is admitted and votes, reports when the quorum
// is lost and when it is back, and blocks until ctx ends or etcd ends by itself.
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
	go e.lookForStrangers(w.running, server) // not waited for: it may hang like the member, see gone
	go e.confirmReads(w.running, server)     // as above
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
			return e.closeOrLeaveOpen(ctx, func() { e.close(server) })
		case err := <-e.fatal:
			if lacksRoom(err) && wasAskedToStop(ctx) {
				return w.leaveOpen(ctx, err)
			}
			return w.died(err)
		case err := <-server.Err():
			return w.failed(err)
		case <-server.Server.StopNotify():
			return e.gone(server)
		}
	}
}

// begin is called once, when this controller belongs to the cluster and votes.
func (w *watch) begin() {
	w.ready()
	w.state.begun = true
	w.member.mu.Lock()
	w.member.report = w.state.report.Ready
	w.member.mu.Unlock()
	w.member.hadQuorum.Store(true)
	w.tasks.Go(func() { w.member.transfers.Follow(w.running, w.server) })
	w.member.reportMembership(w.server)
}

// poll checks for a change of quorum and takes samples.
func (w *watch) poll() {
	e := w.member
	if len(e.fatal) > 0 {
		return // the goroutine that died may hold a lock that the rest needs
	}
	leader := view.LeaderOf(w.server) != 0
	e.noteLeader(leader)
	e.watched.sample(w.server, time.Now())
	w.state.check(leader)
	e.fsyncs.Sample(time.Now())
	if w.polls++; w.polls%membershipEvery != 0 {
		return
	}
	if w.state.begun {
		e.reportMembership(w.server)
	}
	if len(w.server.Server.Cluster().Members()) > 1 {
		peers.LimitUnacked(e.cfg.ListenPeerUrls, e.log)
	}
}

// died ends the watch after a fatal line in etcd's log. Unless the member was removed,
// nothing is closed, because a goroutine of etcd is parked in the logger and Close would
// wait for it forever.
func (w *watch) died(err error) error {
	if strings.Contains(err.Error(), metItsRemoval) {
		return w.member.gone(w.server)
	}
	if said := embedded.FallenBehind(err); said != nil {
		return said
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

// isStopping tells whether the member is stopping by itself. It does so only when the
// other members report its removal (etcdserver/server.go:run).
func isStopping(server *embed.Etcd) bool {
	select {
	case <-server.Server.StoppingNotify():
		return true
	default:
		return false
	}
}

// metItsRemoval is the fatal line of a goroutine of etcd that looks up its own member
// after the removal. It then holds the lock on all members forever
// (api/membership/cluster.go:IsLocalMemberLearner, called by
// api/v3rpc/maintenance.go:Status).
const metItsRemoval = "failed to find local ID in cluster members"

// gone closes a removed member as far as possible, and returns an error with the steps
// that bring the controller back. The member's data are void, so an incomplete close
// loses nothing.
func (e *Member) gone(server *embed.Etcd) error {
	e.mu.Lock()
	e.server = nil // no caller may wait for one of its locks
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
	os.Remove(etcdline.Socket(e.cfg))
	return advice.With(fmt.Errorf("this controller, %s, was removed from the cluster", e.cfg.Name),
		"to bring it back: kthwd member add NAME ADDRESS on another controller, then kthwd join with --replace-data here")
}

// admission blocks until this controller is admitted and votes.
func (e *Member) admission(ctx context.Context, server *embed.Etcd) error {
	if e.onFirstQuorum != nil {
		if err := e.onFirstQuorum(ctx, e, server); err != nil {
			return err
		}
	}
	e.awaitVote(ctx, server)
	return nil
}

// awaitVote blocks until this member is a voter, or until ctx ends. A learner refuses
// clients, so an API server must not be built on one.
func (e *Member) awaitVote(ctx context.Context, server *embed.Etcd) {
	if !view.Learns(server) {
		return
	}
	begun := time.Now()
	e.log.Info("this member is a learner: catching up with the others")
	for view.Learns(server) && ctx.Err() == nil {
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
