package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kthwd/appliance/config"
	"kthwd/appliance/etcd/view"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

// Sharers returns the number of members that must have the same shared files. A voter
// counts the voters; a learner counts all members.
func (e *Member) Sharers() int {
	server := e.Running()
	if server == nil {
		return 0
	}
	if view.Learns(server) {
		return len(server.Server.Cluster().Members())
	}
	return view.Voters(server)
}

// quorumState turns "there is a leader" into log lines and states, once per change.
type quorumState struct {
	etcd   *Member
	report supervise.Reporter
	begun  bool // there has been a quorum
	lost   bool
	active int // reachable members, with this one, in the last line about the first quorum
}

func (q *quorumState) check(leader bool) {
	if leader && q.begun && !q.lost {
		return
	}
	now := q.etcd.Quorum()
	switch {
	case !q.begun:
		if !leader && now.Note != "" && now.Members > 1 && now.Active != q.active {
			q.etcd.log.Info("waiting for a quorum: start the other controllers", q.seen(now)...)
			q.active = now.Active
		}
		q.report.Waiting(cmp.Or(now.Note, "waiting for the first write"))
	case !leader:
		if !q.lost {
			q.etcd.log.Warn("quorum lost", q.seen(now)...)
		}
		q.report.Waiting(now.Note)
		q.lost = true
	case q.lost:
		q.etcd.log.Info("quorum is back", "leader", now.Leader)
		q.report.Ready("")
		q.lost = false
	}
}

func (q *quorumState) seen(now status.Quorum) []any {
	attrs := []any{"members", now.Members, "reachable", now.Active, "needed", now.Needed}
	if now.Advice != "" {
		attrs = append(attrs, "hint", now.LookFirst(now.Advice))
	}
	return attrs
}

// LinearizableRead blocks until a quorum has confirmed this member's view, or ctx ends.
func (e *Member) LinearizableRead(ctx context.Context) error {
	server := e.Running()
	if server == nil {
		return errors.New("etcd has not started")
	}
	return server.Server.LinearizableReadNotify(ctx)
}

// Quorum reports the number of voting members, how many are needed, and how many take part
// as the leader sees it. Without a leader it reports how many this member reaches.
func (e *Member) Quorum() status.Quorum {
	server := e.Running()
	if server == nil {
		return status.Quorum{Note: "waiting for etcd to start"}
	}
	active, says := e.Participants(server)
	q := status.Quorum{Seen: says}
	for _, m := range server.Server.Cluster().Members() {
		if m.IsLearner {
			continue
		}
		q.Members++
		if active[m.ID.String()] {
			q.Active++
		}
	}
	q.Needed = q.Members/2 + 1
	q.Warning = strings.Join(config.EvenWarning(q.Members), "")
	if leader := view.LeaderOf(server); leader != 0 {
		q.Active = max(q.Active, q.Needed) // raft deposes a leader with fewer
		q.Silent = e.watched.silent(time.Now())
		q.Leader = view.NameOf(server, leader)
		if view.Learns(server) {
			q.Note = "learner: catching up; it votes once it has"
		}
		return q
	}
	q.Note = fmt.Sprintf("waiting for etcd quorum (%d of %d)", q.Active, q.Members)
	if strangers := e.strangers.Load(); strangers != nil {
		q.Note += "; " + *strangers
	}
	e.advise(&q)
	return q
}

// Redundant tells whether the cluster has other voting members and a leader.
func (e *Member) Redundant() bool {
	server := e.Running()
	return server != nil && view.Voters(server) > 1 && view.LeaderOf(server) != 0
}
