package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/etcdmetrics"
	"kthwd/appliance/supervise"
)

// While a leader transfers its leadership, it drops every write until the new leader is
// elected. It silently drops the writes that other members forward as well: their clients
// get "request timed out" seven seconds later (raft.go:stepLeader, ErrProposalDropped).
// Therefore all members hold their writes meanwhile, for some tens of milliseconds, and
// none is lost:
//
//	leader     closes its gate; puts transferKey = its id ─┐
//	the others                                             └─► close their gates, wait for the writes under
//	           waits for their answers        ◄─────────────── way, put transferKey/REVISION/their id
//	           transfers; deletes the keys
//	all        open their gates when another member leads, or after heldAfter
//
// Each wait is bounded. The leader waits for a silent member for heldBefore at most; after
// that a write may fail, as it would in any etcd cluster.
const (
	transferKey = "/kthwd/handover"
	heldBefore  = 500 * time.Millisecond // until all have closed their gates
	heldAfter   = 2 * time.Second        // until another member leads
	leaderPoll  = time.Millisecond       // how often an atomic number is read while writes are held
)

// TransferLeadership makes another member the leader, if this one leads and there is
// another voter, and holds the writes of all members until then. It blocks for a few
// seconds at most, and logs a failure at level.
func (e *Member) TransferLeadership(ctx context.Context, server *embed.Etcd, level slog.Level) {
	us := uint64(server.Server.MemberID())
	if server.Server.Lead() != us || Voters(server) < 2 {
		return
	}
	begun := time.Now()
	var err error
	silent := e.holding(ctx, server, func() { err = server.Server.TryTransferLeadershipOnShutdown() })
	switch {
	case err != nil:
		e.log.Log(context.Background(), level, "leadership not handed over", "err", err)
	case server.Server.Lead() != us:
		e.log.Info("leadership handed over", "to", e.Quorum().Leader, "took", time.Since(begun).Round(time.Millisecond))
	}
	e.sayHeld(silent)
}

// HoldWrites calls transfer, which moves the leadership from this member to another one, while
// all members hold their writes. If this member does not lead, it just calls transfer.
func (e *Member) HoldWrites(ctx context.Context, transfer func()) {
	server := e.Running()
	if server == nil || server.Server.Lead() != uint64(server.Server.MemberID()) || Voters(server) < 2 {
		transfer()
		return
	}
	e.sayHeld(e.holding(ctx, server, transfer))
}

// holding calls transfer while all members hold their writes, and returns when this one's
// are let in again, with the number of members that did not confirm it.
func (e *Member) holding(ctx context.Context, server *embed.Etcd, transfer func()) (silent int) {
	client := v3client.New(server.Server)
	defer client.Close()
	opened := make(chan struct{})
	silent = e.holdEverywhere(ctx, server, client, opened)
	transfer()
	<-opened
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), heldBefore)
	defer cancel()
	if _, err := client.Delete(ctx, transferKey, clientv3.WithPrefix()); err != nil {
		e.log.Debug("hand-over keys not deleted", "err", err) // the next transfer replaces the first key and ignores the others
	}
	return silent
}

func (e *Member) sayHeld(silent int) {
	if silent > 0 {
		e.log.Warn("leadership moved while some members still took writes; one of those may have failed", "members", silent)
	}
}

// holdEverywhere blocks until every member holds its writes, or for heldBefore, and
// returns how many members did not confirm it. opened is closed when this member's gate
// is open again.
func (e *Member) holdEverywhere(ctx context.Context, server *embed.Etcd, client *clientv3.Client, opened chan struct{}) (silent int) {
	ctx, cancel := context.WithTimeout(ctx, heldBefore)
	defer cancel()
	others := len(etcdmetrics.ActivePeers(server.Server.MemberID()))
	e.hold(ctx, server, opened)
	asked, err := client.Put(ctx, transferKey, strconv.FormatUint(uint64(server.Server.MemberID()), 16))
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
	return fmt.Sprintf("%s/%d/%s", transferKey, revision, member)
}

// hold closes the gate, and blocks until the writes under way have ended or ctx ends. The
// gate opens again when a different member leads, or after heldAfter; then opened is
// closed.
func (e *Member) hold(ctx context.Context, server *embed.Etcd, opened chan struct{}) {
	from := server.Server.Lead()
	if !e.gate.Close(ctx) {
		close(opened)
		return
	}
	go func() {
		defer close(opened)
		defer e.gate.Open()
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

// followTransfers holds this member's writes whenever another member transfers its
// leadership. It blocks until ctx ends.
func (e *Member) followTransfers(ctx context.Context, server *embed.Etcd) {
	client := v3client.New(server.Server)
	defer client.Close()
	for ctx.Err() == nil {
		e.followWatch(ctx, server, client)
		supervise.Sleep(ctx, QuorumPoll)
	}
}

// followWatch does the work of followTransfers until the watch ends.
func (e *Member) followWatch(ctx context.Context, server *embed.Etcd, client *clientv3.Client) {
	us := server.Server.MemberID().String()
	for events := range client.Watch(ctx, transferKey, clientv3.WithFilterDelete()) {
		for _, event := range events.Events {
			leader, err := strconv.ParseUint(string(event.Kv.Value), 16, 64)
			if err != nil || leader == uint64(server.Server.MemberID()) || leader != server.Server.Lead() {
				continue // this transfer is over
			}
			e.holdFor(ctx, server, client, heldKey(event.Kv.ModRevision, us))
		}
	}
}

// holdFor holds the writes and confirms it by putting key. It blocks until the gate is
// open again.
func (e *Member) holdFor(ctx context.Context, server *embed.Etcd, client *clientv3.Client, key string) {
	ctx, cancel := context.WithTimeout(ctx, heldBefore)
	defer cancel()
	opened := make(chan struct{})
	e.hold(ctx, server, opened)
	if _, err := client.Put(ctx, key, ""); err != nil {
		e.log.Debug("hand-over continues without this member's confirmation", "err", err)
	}
	<-opened
}
