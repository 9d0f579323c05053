package etcd

import (
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/etcdmetrics"
)

// Reachable are the peers that can be spoken with, by their ID.
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

// listen notes who is heard, and since when there has been no leader.
func (e *Member) listen(leader bool) {
	now := time.Now()
	if !leader {
		e.peers.Sample(now) // who is silent is asked only then
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
