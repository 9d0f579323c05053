// Package leadership moves etcd's leadership from one member to another without failing a write.
package leadership

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/etcd/view"
	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/supervise"
	"kthwd/appliance/writegate"
)

// While a leader transfers its leadership, it drops every write until the new leader is
// elected. It silently drops the writes that other members forward as well: their clients
// get "request timed out" seven seconds later (raft.go:stepLeader, ErrProposalDropped).
// Therefore all members hold their writes meanwhile, for some tens of milliseconds, and
// none is lost:
//
//	leader     closes its gate; puts Key = its id ─┐
//	the others                                             └─► close their gates, wait for the writes under
//	           waits for their answers        ◄─────────────── way, put Key/REVISION/their id
//	           transfers; deletes the keys
//	all        open their gates when another member leads, or after heldAfter
//
// Each wait is bounded. The leader waits for a silent member for heldBefore at most; after
// that a write may fail, as it would in any etcd cluster.
// Key is the key with which a leader announces a transfer, and the prefix of the answers.
const Key = "/kthwd/handover"

const (
	heldBefore = 500 * time.Millisecond // until all have closed their gates
	heldAfter  = 2 * time.Second        // until another member leads
	poll       = 500 * time.Millisecond // between two watches that have ended
	leaderPoll = time.Millisecond       // how often an atomic number is read while writes are held
)

// Transfers moves the leadership of this member, and holds its writes while another's moves. Its
// methods may be called from any goroutine.
type Transfers struct {
	Gate writegate.Gate // through which the clients' writes pass
	Log  *slog.Logger
}

// Move makes another member the leader, if this one leads and there is
// another voter, and holds the writes of all members until then. It blocks for a few
// seconds at most, and logs a failure at level.
func (t *Transfers) Move(ctx context.Context, server *embed.Etcd, level slog.Level) {
	us := uint64(server.Server.MemberID())
	if server.Server.Lead() != us || view.Voters(server) < 2 {
		return
	}
	begun := time.Now()
	var err error
	silent := t.holding(ctx, server, func() { err = server.Server.TryTransferLeadershipOnShutdown() })
	switch {
	case err != nil:
		t.Log.Log(context.Background(), level, "leadership not handed over", "err", err)
	case server.Server.Lead() != us:
		t.Log.Info("leadership handed over", "to", view.NameOf(server, view.LeaderOf(server)), "took", time.Since(begun).Round(time.Millisecond))
	}
	t.sayHeld(silent)
}

// HoldWrites calls transfer, which moves the leadership from this member to another one, while
// all members hold their writes. If this member does not lead, it just calls transfer.
func (t *Transfers) HoldWrites(ctx context.Context, server *embed.Etcd, transfer func()) {
	if server == nil || server.Server.Lead() != uint64(server.Server.MemberID()) || view.Voters(server) < 2 {
		transfer()
		return
	}
	t.sayHeld(t.holding(ctx, server, transfer))
}

// holding calls transfer while all members hold their writes, and returns when this one's
// are let in again, with the number of members that did not confirm it.
func (t *Transfers) holding(ctx context.Context, server *embed.Etcd, transfer func()) (silent int) {
	client := v3client.New(server.Server)
	defer client.Close()
	opened := make(chan struct{})
	silent = t.holdEverywhere(ctx, server, client, opened)
	transfer()
	<-opened
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), heldBefore)
	defer cancel()
	if _, err := client.Delete(ctx, Key, clientv3.WithPrefix()); err != nil {
		t.Log.Debug("hand-over keys not deleted", "err", err) // the next transfer replaces the first key and ignores the others
	}
	return silent
}

func (t *Transfers) sayHeld(silent int) {
	if silent > 0 {
		t.Log.Warn("leadership moved while some members still took writes; one of those may have failed", "members", silent)
	}
}

// holdEverywhere blocks until every member holds its writes, or for heldBefore, and
// returns how many members did not confirm it. opened is closed when this member's gate
// is open again.
func (t *Transfers) holdEverywhere(ctx context.Context, server *embed.Etcd, client *clientv3.Client, opened chan struct{}) (silent int) {
	ctx, cancel := context.WithTimeout(ctx, heldBefore)
	defer cancel()
	others := len(etcdmetrics.ActivePeers(server.Server.MemberID()))
	t.Hold(ctx, server, opened)
	asked, err := client.Put(ctx, Key, strconv.FormatUint(uint64(server.Server.MemberID()), 16))
	if err != nil {
		return others
	}
	answers := client.Watch(ctx, heldKey(asked.Header.Revision, ""), clientv3.WithPrefix(), clientv3.WithRev(asked.Header.Revision))
	for silent = others; silent > 0; {
		answer, ok := <-answers
		if !ok || answer.Err() != nil {
			return silent
		}
		silent -= len(answer.Events) // a member has one key, and puts it once
	}
	return 0
}

// heldKey is the key that a member puts when it holds its writes for the transfer that
// was announced at revision.
func heldKey(revision int64, member string) string {
	return fmt.Sprintf("%s/%d/%s", Key, revision, member)
}

// Hold closes the gate, and blocks until the writes under way have ended or ctx ends. The
// gate opens again when a different member leads, or after heldAfter; then opened is
// closed.
func (t *Transfers) Hold(ctx context.Context, server *embed.Etcd, opened chan struct{}) {
	from := server.Server.Lead()
	if !t.Gate.Close(ctx) {
		close(opened)
		return
	}
	go func() {
		defer close(opened)
		defer t.Gate.Open()
		late := time.After(heldAfter)
		tick := time.NewTicker(leaderPoll)
		defer tick.Stop()
		for lead := from; lead == from || lead == 0; lead = server.Server.Lead() {
			select {
			case <-tick.C:
			case <-late:
				return
			case <-server.Server.StopNotify():
				return
			}
		}
	}()
}

// Follow holds this member's writes whenever another member transfers its
// leadership. It blocks until ctx ends.
func (t *Transfers) Follow(ctx context.Context, server *embed.Etcd) {
	client := v3client.New(server.Server)
	defer client.Close()
	for ctx.Err() == nil {
		t.followWatch(ctx, server, client)
		supervise.Sleep(ctx, poll)
	}
}

// followWatch does the work of Follow until the watch ends.
func (t *Transfers) followWatch(ctx context.Context, server *embed.Etcd, client *clientv3.Client) {
	us := server.Server.MemberID().String()
	for events := range client.Watch(ctx, Key, clientv3.WithFilterDelete()) {
		for _, event := range events.Events {
			leader, err := strconv.ParseUint(string(event.Kv.Value), 16, 64)
			if err != nil || leader == uint64(server.Server.MemberID()) || leader != server.Server.Lead() {
				continue // this transfer is over
			}
			t.holdFor(ctx, server, client, heldKey(event.Kv.ModRevision, us))
		}
	}
}

// holdFor holds the writes and confirms it by putting key. It blocks until the gate is
// open again.
func (t *Transfers) holdFor(ctx context.Context, server *embed.Etcd, client *clientv3.Client, key string) {
	ctx, cancel := context.WithTimeout(ctx, heldBefore)
	defer cancel()
	opened := make(chan struct{})
	t.Hold(ctx, server, opened)
	if _, err := client.Put(ctx, key, ""); err != nil {
		t.Log.Debug("hand-over continues without this member's confirmation", "err", err)
	}
	<-opened
}
