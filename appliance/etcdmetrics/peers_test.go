package etcdmetrics

import (
	"testing"
	"time"
)

// A peer that etcd calls active counts as gone once it has been silent without a leader.
func TestPeersHeard(t *testing.T) {
	if receivedBytes() == nil {
		t.Error("etcd_network_peer_received_bytes_total: not found")
	}
	var p PeersHeard
	begin := time.Now()
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	p.note(map[string]float64{"a": 10, "b": 10}, at(0))
	p.note(map[string]float64{"a": 10, "b": 20}, at(100)) // a follower: silent while all is well
	p.note(map[string]float64{"a": 10, "b": 30}, at(103))
	p.note(map[string]float64{"a": 10, "b": 40}, at(106))
	for _, tt := range []struct {
		peer       string
		since, now float64
		want       bool
	}{
		{"a", 102, 104, false}, // without a leader for only 2 s
		{"a", 102, 106, true},
		{"b", 102, 106, false},
		{"b", 102, 109.5, true},
		{"unknown", 102, 106, true},
	} {
		if got := p.Silent(tt.peer, at(tt.since), at(tt.now)); got != tt.want {
			t.Errorf("%s, without a leader since %v, at %v: got silent %v, want %v", tt.peer, tt.since, tt.now, got, tt.want)
		}
	}
}
