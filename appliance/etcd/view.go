package etcd

import (
	"context"
	"maps"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// Which members take part in the quorum is known to the leader only: raft deposes a leader
// that half of the members do not answer. A connection proves little. It may be cut in one
// direction, while the messages pass through the connection of the other direction.
// Therefore the leader counts the members that have answered it lately, and a follower
// believes the leader (Views); without its word, a follower counts the connections that it
// has itself, and the leader.
const (
	// ackWindow is how long an answer to the leader counts. Answers come with each
	// heartbeat; raft forgets them once per election timeout.
	ackWindow = 3 * time.Second
	// viewMargin is how much later than an event here the leader's word must be, so that
	// the answers in it are later than the event.
	viewMargin = ackWindow + time.Second
	// leaderSilence is how long a leader may leave reads unconfirmed.
	leaderSilence = 10 * time.Second
)

// Views is what other controllers say about the cluster.
type Views interface {
	// View returns the last answer of the controller with that member ID, with fresh after
	// asking it again. It blocks for a few seconds at most, and not at all without fresh.
	View(ctx context.Context, id uint64, fresh bool) (status.Controller, bool)
	// Elsewhere returns the name of a leader that a controller named after since: itself, or
	// the one that it follows.
	Elsewhere(since time.Time) string
	// Answering returns how many other controllers have told their state lately.
	Answering() int
}

// UseViews sets whom the member believes when it does not lead. Call it before Run.
func (e *Member) UseViews(v Views) { e.views = v }

// watched is what the polls have seen of the other members. Its zero value is ready for use.
type watched struct {
	mu        sync.Mutex
	leader    types.ID
	since     time.Time            // when leader was seen first; of the loss while there is none
	answered  map[string]time.Time // by member: the last answer to this leader
	lost      map[string]time.Time // by member: since when etcd counts no connection
	refused   map[string]bool      // by member: the last attempt to connect to a lost one failed
	confirmed time.Time            // the last read that the leader confirmed
}

// sample records the leader, the answers to it if this member leads, and the connections.
func (w *watched) sample(server *embed.Etcd, now time.Time) {
	self, leader := server.Server.MemberID(), view.LeaderOf(server)
	acks, leads := map[string]bool(nil), false
	if leader == self && view.Voters(server) > 1 {
		acks, leads = etcdmetrics.Acknowledged(self)
	}
	active := etcdmetrics.ActivePeers(self)
	w.mu.Lock()
	defer w.mu.Unlock()
	if leader != w.leader || w.since.IsZero() {
		w.leader, w.since, w.answered, w.confirmed = leader, now, map[string]time.Time{}, now
	}
	if leads {
		for id := range acks {
			w.answered[id] = now
		}
	}
	if w.lost == nil {
		w.lost = map[string]time.Time{}
	}
	for _, m := range server.Server.Cluster().Members() {
		id := m.ID.String()
		if _, known := w.lost[id]; active[id] || m.ID == self {
			delete(w.lost, id)
		} else if !known {
			w.lost[id] = now
		}
	}
}

// answers returns the members that have answered this leader lately. It returns nil until
// it has led for long enough to tell.
func (w *watched) answers(now time.Time) map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.since) < ackWindow {
		return nil
	}
	by := map[string]bool{}
	for id, at := range w.answered {
		by[id] = now.Sub(at) <= ackWindow
	}
	return by
}

// times returns when the leader was first seen, or lost, and since when there is no
// connection to each of the members without one.
func (w *watched) times() (leader time.Time, lost map[string]time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since, maps.Clone(w.lost)
}

// silent tells whether the leader has confirmed no read for leaderSilence.
func (w *watched) silent(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leader != 0 && now.Sub(w.confirmed) > leaderSilence
}

// Participants returns the IDs of the members that take part in the quorum, or that would
// as far as this member knows, and the name of the controller that says so.
func (e *Member) Participants(server *embed.Etcd) (active map[string]bool, says string) {
	self, leader, now := server.Server.MemberID(), view.LeaderOf(server), time.Now()
	active = e.Reachable(server)
	active[self.String()] = true
	if leader == 0 {
		return active, e.cfg.Name
	}
	active[leader.String()] = true
	if leader == self {
		if by := e.watched.answers(now); by != nil {
			by[self.String()] = true
			return by, e.cfg.Name
		}
		return active, e.cfg.Name
	}
	if e.views == nil {
		return active, e.cfg.Name
	}
	v, ok := e.views.View(context.Background(), uint64(leader), false)
	if !ok || !v.Leads || v.Member != leader.String() {
		return active, e.cfg.Name
	}
	e.believe(active, v, leader)
	return active, v.Name
}

// believe replaces what this member sees by what the leader says. The leader's word does not
// count where it may be older than the loss of a connection, or than the leader itself.
func (e *Member) believe(active map[string]bool, v status.Controller, leader types.ID) {
	since, lost := e.watched.times()
	if !v.Answered.After(since.Add(viewMargin)) {
		return
	}
	for _, p := range v.Peers {
		if at, gone := lost[p.ID]; p.ID != leader.String() && (!gone || v.Answered.After(at.Add(viewMargin))) {
			active[p.ID] = p.Active
		}
	}
}

// unheard tells for each member since when it has been active without a connection to this
// one: the connection is cut, and the member is not.
func (e *Member) unheard(server *embed.Etcd, active map[string]bool) map[string]time.Time {
	since, lost := e.watched.times()
	now := time.Now()
	e.watched.mu.Lock()
	defer e.watched.mu.Unlock()
	for id, at := range lost {
		if !active[id] || !e.watched.refused[id] || view.LeaderOf(server) == 0 || now.Sub(at) < viewMargin || now.Sub(since) < viewMargin {
			delete(lost, id)
		}
	}
	return lost
}

// mayBeLost tells whether so many members are silent that there may be no quorum again. A
// controller that tells its state is not lost, whether its etcd is heard or not.
func (e *Member) mayBeLost(q status.Quorum) bool {
	return e.hadQuorum.Load() && q.Members > 1 && q.Active < q.Needed && 1+e.answering() < q.Needed
}

// advise completes the state of the quorum while this member has no leader.
func (e *Member) advise(q *status.Quorum) {
	switch q.Elsewhere = e.elsewhere(); {
	case q.Elsewhere != "":
		q.Note += "; others have one, with the leader " + q.Elsewhere
		q.Advice = "let this controller and the others reach each other's etcd peer port"
	case e.mayBeLost(*q):
		q.Maybe = q.Members-1-e.answering() >= q.Needed
		q.Advice = "if so many are lost for good that there will be no quorum again, stop kthwd here and run kthwd etcd recover"
	}
}

// answering returns how many other controllers have told their state lately.
func (e *Member) answering() int {
	if e.views == nil {
		return 0
	}
	return e.views.Answering()
}

// elsewhere returns the leader that others have while this member has none.
func (e *Member) elsewhere() string {
	if e.views == nil {
		return ""
	}
	since, _ := e.watched.times()
	return e.views.Elsewhere(since.Add(viewMargin))
}

// confirmEvery is the pause between two reads that the leader has to confirm.
const confirmEvery = 5 * time.Second

// confirmReads records when the leader last confirmed a read: a member that hears the leader
// and is not heard by it has a leader, and no use of it. It blocks until ctx ends.
func (e *Member) confirmReads(ctx context.Context, server *embed.Etcd) {
	for ctx.Err() == nil {
		if view.Voters(server) > 1 && view.LeaderOf(server) != 0 && e.confirmRead(ctx, server) || view.Voters(server) == 1 {
			e.watched.mu.Lock()
			e.watched.confirmed = time.Now()
			e.watched.mu.Unlock()
		}
		e.tryLost(ctx, server)
		supervise.Sleep(ctx, confirmEvery)
	}
}

// tryLost connects to the members to which etcd counts no connection. The count alone is no
// proof: a message that fails late, such as one to an earlier address, takes away a peer whose
// streams are there already, until one of them is opened anew (rafthttp/peer_status.go).
func (e *Member) tryLost(ctx context.Context, server *embed.Etcd) {
	_, lost := e.watched.times()
	refused := map[string]bool{}
	for _, m := range server.Server.Cluster().Members() {
		if id := m.ID.String(); !lost[id].IsZero() && len(m.PeerURLs) > 0 {
			refused[id] = peers.Try(ctx, e.cfg, m.PeerURLs[0]) != nil
		}
	}
	e.watched.mu.Lock()
	defer e.watched.mu.Unlock()
	e.watched.refused = refused
}

func (e *Member) confirmRead(ctx context.Context, server *embed.Etcd) bool {
	ctx, cancel := context.WithTimeout(ctx, confirmEvery)
	defer cancel()
	return server.Server.LinearizableReadNotify(ctx) == nil
}

// AskLeader asks the leader anew which members take part. It blocks for a few seconds at
// most.
func (e *Member) AskLeader(ctx context.Context) {
	server := e.Running()
	if server == nil || e.views == nil {
		return
	}
	if leader := view.LeaderOf(server); leader != 0 && leader != server.Server.MemberID() {
		e.views.View(ctx, uint64(leader), true)
	}
}
