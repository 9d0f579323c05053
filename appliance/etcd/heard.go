package etcd

import (
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcdmetrics"
)

// Reachable returns the IDs of the peers that this member reaches.
func (e *Member) Reachable(server *embed.Etcd) map[string]bool {
	active := etcdmetrics.ActivePeers(server.Server.MemberID())
	e.mu.Lock()
	since := e.leaderless
	e.mu.Unlock()
	if since.IsZero() {
		return active
	}
	for peer := range active {
		if e.peers.Silent(peer, since, time.Now()) {
			delete(active, peer)
		}
	}
	return active
}

// noteLeader records the peers heard from and the time at which the leader was lost.
func (e *Member) noteLeader(leader bool) {
	now := time.Now()
	if !leader {
		e.peers.Sample(now) // Reachable needs the samples only then
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case leader:
		e.leaderless = time.Time{}
	case e.leaderless.IsZero():
		e.leaderless = now
	}
}
