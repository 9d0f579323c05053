package etcdmetrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

// activePeersGauge is 1 for each peer with a live stream (etcdserver/api/rafthttp/metrics.go).
var activePeersGauge = sync.OnceValue(func() prometheus.Collector {
	return registered(prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "etcd_network_active_peers", Help: "The current number of active peer connections.",
	}, []string{"Local", "Remote"}))
})

// ActivePeers returns the IDs of the peers with a live stream to the local member.
func ActivePeers(local types.ID) map[string]bool {
	active := map[string]bool{}
	for _, m := range collect(activePeersGauge()) {
		if label(m, "Local") == local.String() && m.GetGauge().GetValue() > 0 {
			active[label(m, "Remote")] = true
		}
	}
	return active
}

// peerSilence is how long a peer may be silent, while there is no leader, before it
// counts as gone. Without a leader, every member sends something each second or two.
const peerSilence = 3 * time.Second

// receivedBytes counts what each peer has sent (etcdserver/api/rafthttp/metrics.go).
var receivedBytes = sync.OnceValue(func() prometheus.Collector {
	return registered(prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "etcd", Subsystem: "network", Name: "peer_received_bytes_total",
		Help: "The total number of bytes received from peers.",
	}, []string{"From"}))
})

// PeersHeard records when each peer was last heard. etcd itself does not notice a network
// that drops every packet: the timeouts of its streams have no effect, because net/http
// prefers DialContext over the Dial that sets them (client/pkg/transport/
// timeout_transport.go). Its peers therefore stay active until TCP gives up, after
// minutes. The zero value is ready for use, from any goroutine.
type PeersHeard struct {
	mu    sync.Mutex
	bytes map[string]float64
	at    map[string]time.Time
}

// Sample reads the counters. Call it regularly while there is no leader.
func (p *PeersHeard) Sample(now time.Time) {
	counts := map[string]float64{}
	for _, m := range collect(receivedBytes()) {
		counts[label(m, "From")] = m.GetCounter().GetValue()
	}
	p.note(counts, now)
}

func (p *PeersHeard) note(counts map[string]float64, now time.Time) {
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

// Silent tells whether a peer has sent nothing for peerSilence. The time before since,
// while there was a leader, does not count, because followers do not talk to each other
// then.
func (p *PeersHeard) Silent(peer string, since, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.at[peer]
	if last.Before(since) {
		last = since
	}
	return now.Sub(last) > peerSilence
}
