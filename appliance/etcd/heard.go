package etcd

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/embed"
)

// peerSilence is how long a peer may be silent, while there is no leader, before it
// counts as gone: members that look for one say something every second or two.
const peerSilence = 3 * time.Second

// receivedBytes counts what each peer has sent (etcdserver/api/rafthttp/metrics.go).
var receivedBytes = sync.OnceValue(func() prometheus.Collector {
	return registered(prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "etcd", Subsystem: "network", Name: "peer_received_bytes_total",
		Help: "The total number of bytes received from peers.",
	}, []string{"From"}))
})

// peersHeard is when each peer was heard last. etcd itself does not notice when a
// network swallows everything: the timeouts of its streams are not in force, because
// net/http prefers DialContext over the Dial that has them (client/pkg/transport/
// timeout_transport.go), so its peers stay active until TCP gives up, after minutes.
// The zero value is ready for use.
type peersHeard struct {
	mu    sync.Mutex
	bytes map[string]float64
	at    map[string]time.Time
}

// sample looks at the counters. It is called all the time while there is no leader.
func (p *peersHeard) sample(now time.Time) {
	counts := map[string]float64{}
	for _, m := range collect(receivedBytes()) {
		counts[label(m, "From")] = m.GetCounter().GetValue()
	}
	p.note(counts, now)
}

func (p *peersHeard) note(counts map[string]float64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil {
		p.bytes, p.at = map[string]float64{}, map[string]time.Time{}
	}
	for peer, n := range counts {
		if n != p.bytes[peer] {
			p.bytes[peer], p.at[peer] = n, now
		}
	}
}

// silent tells whether nothing has come from a peer for peerSilence, neither now nor
// before since, when there was a leader: followers say nothing to each other then.
func (p *peersHeard) silent(peer string, since, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.at[peer]
	if last.Before(since) {
		last = since
	}
	return now.Sub(last) > peerSilence
}

// Reachable are the peers that can be spoken with, by their ID.
func (e *Member) Reachable(server *embed.Etcd) map[string]bool {
	active := ActivePeers(server.Server.MemberID())
	e.mu.Lock()
	since := e.leaderless
	e.mu.Unlock()
	if since.IsZero() {
		return active
	}
	for peer := range active {
		if e.peers.silent(peer, since, time.Now()) {
			delete(active, peer)
		}
	}
	return active
}

// listen notes who is heard, and since when there has been no leader.
func (e *Member) listen(leader bool) {
	now := time.Now()
	if !leader {
		e.peers.sample(now) // who is silent is asked only then
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
