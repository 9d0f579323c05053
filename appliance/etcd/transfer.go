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

// A leader that hands over drops every write that comes to it until the other one
// leads, and those that other members pass on to it without a word: their
// clients get "request timed out" seven seconds later (raft.go:stepLeader,
// ErrProposalDropped). So the writes of all members are held meanwhile, some tens of
// milliseconds, and none is lost:
//
//	leader     closes its gate; puts handOverKey = its id ─┐
//	the others                                             └─► close their gates, wait for what is under
//	           waits for their words          ◄─────────────── way, put handOverKey/REVISION/their id
//	           hands over; deletes the keys
//	all        open their gates when another one leads, or when it has taken too long
//
// Each of the waits is bounded, and a member that says nothing is not waited for longer
// than heldBefore: then a write may fail, as it would in any etcd cluster.
const (
	transferKey = "/kthwd/handover"
	heldBefore  = 500 * time.Millisecond // until all have closed their gates
	heldAfter   = 2 * time.Second        // until another one leads
	leaderPoll  = time.Millisecond       // of an atomic number, while writes are held
)

// handOver makes another member the leader, if there is one, and holds the writes of
// all members until it leads. It blocks for some seconds at most. A failure is logged at level.
func (e *Member) TransferLeadership(ctx context.Context, server *embed.Etcd, level slog.Level) {
	us := uint64(server.Server.MemberID())
	if server.Server.Lead() != us || Voters(server) < 2 {
		return
	}
	begun := time.Now()
	client := v3client.New(server.Server)
	defer client.Close()
	opened := make(chan struct{})
	silent := e.holdEverywhere(ctx, server, client, opened)
	err := server.Server.TryTransferLeadershipOnShutdown()
	<-opened
	switch {
	case err != nil:
		e.log.Log(context.Background(), level, "leadership not handed over", "err", err)
	case server.Server.Lead() != us:
		e.log.Info("leadership handed over", "to", e.Quorum().Leader, "took", time.Since(begun).Round(time.Millisecond))
	}
	if silent > 0 {
		e.log.Warn("leadership moved while some members still took writes; one of those may have failed", "members", silent)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), heldBefore)
	defer cancel()
	if _, err := client.Delete(ctx, transferKey, clientv3.WithPrefix()); err != nil {
		e.log.Debug("keys of the hand-over are left", "err", err) // the next one replaces the first, and overlooks the others
	}
}

// holdEverywhere returns when no member lets a write in any more, with the number of
// those that did not say so. opened is closed when this one's gate is open again.
func (e *Member) holdEverywhere(ctx context.Context, server *embed.Etcd, client *clientv3.Client, opened chan struct{}) (silent int) {
	ctx, cancel := context.WithTimeout(ctx, heldBefore)
	defer cancel()
	others := len(etcdmetrics.ActivePeers(server.Server.MemberID()))
	e.hold(ctx, server, opened)
	asked, err := client.Put(ctx, transferKey, strconv.FormatUint(uint64(server.Server.MemberID()), 16))
	if err != nil {
		return others
	}
	words := client.Watch(ctx, heldKey(asked.Header.Revision, ""), clientv3.WithPrefix(), clientv3.WithRev(asked.Header.Revision))
	for silent = others; silent > 0; {
		word, ok := <-words
		if !ok || word.Err() != nil {
			return silent
		}
		silent -= len(word.Events) // a member has one key, and puts it once
	}
	return 0
}

// heldKey is put by a member that holds its writes for the hand-over that was
// announced at the revision.
func heldKey(revision int64, member string) string {
	return fmt.Sprintf("%s/%d/%s", transferKey, revision, member)
}

// hold closes the gate, and opens it when another member leads than now, or when that
// takes too long; then opened is closed. It returns when what was under way is done or ctx ends.
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

// followTransfers holds this member's writes when another one hands leadership over, until ctx ends.
func (e *Member) followTransfers(ctx context.Context, server *embed.Etcd) {
	client := v3client.New(server.Server)
	defer client.Close()
	for ctx.Err() == nil {
		e.followWatch(ctx, server, client)
		supervise.Sleep(ctx, QuorumPoll)
	}
}

// followWatch is followTransfers until the watch is broken off.
func (e *Member) followWatch(ctx context.Context, server *embed.Etcd, client *clientv3.Client) {
	us := server.Server.MemberID().String()
	for events := range client.Watch(ctx, transferKey, clientv3.WithFilterDelete()) {
		for _, event := range events.Events {
			leader, err := strconv.ParseUint(string(event.Kv.Value), 16, 64)
			if err != nil || leader == uint64(server.Server.MemberID()) || leader != server.Server.Lead() {
				continue // over already
			}
			e.holdFor(ctx, server, client, heldKey(event.Kv.ModRevision, us))
		}
	}
}

// holdFor holds the writes, and puts key to say so.
func (e *Member) holdFor(ctx context.Context, server *embed.Etcd, client *clientv3.Client, key string) {
	ctx, cancel := context.WithTimeout(ctx, heldBefore)
	defer cancel()
	opened := make(chan struct{})
	e.hold(ctx, server, opened)
	if _, err := client.Put(ctx, key, ""); err != nil {
		e.log.Debug("a hand-over goes on without this member's word", "err", err)
	}
	<-opened
}
