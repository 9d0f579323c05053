package lb

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestVanished(t *testing.T) {
	const longAgo, lately = 31_000, 29_000 // milliseconds since the last acknowledgement
	for _, tt := range []struct {
		name string
		info unix.TCPInfo
		want bool
	}{
		{"no data on its way", unix.TCPInfo{Last_ack_recv: longAgo}, false},
		{"data that was just sent", unix.TCPInfo{Last_ack_recv: longAgo, Unacked: 1}, false},
		{"data that were sent again", unix.TCPInfo{Last_ack_recv: longAgo, Unacked: 1, Retransmits: 1}, true},
		{"sent again, lately", unix.TCPInfo{Last_ack_recv: lately, Unacked: 1, Retransmits: 7}, false},
		{"no room for data, and answers", unix.TCPInfo{Last_ack_recv: longAgo, Notsent_bytes: 1 << 20}, false},
		{"no room for data, and a probe was just sent", unix.TCPInfo{Last_ack_recv: longAgo, Notsent_bytes: 1 << 20, Probes: 1}, false},
		{"no room for data, and probes are not answered", unix.TCPInfo{Last_ack_recv: longAgo, Notsent_bytes: 1 << 20, Probes: 2}, true},
	} {
		if got := vanished(&tt.info); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// The loop looks at a pair while it has traffic or data on its way, and then leaves it in peace.
func TestLookAtTraffic(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	client, server, _ := r.pairUp(p)
	say(t, client, server, "a question")
	aged := func() (queued bool) {
		must(t, r.eachPair(func(l *loop, p *pair) error {
			if p.in == &l.young {
				l.young.remove(p)
				l.lookLater(p)
			}
			p.seen = l.now - int64(lookEvery)
			if p.in == &l.trafficked {
				l.look(p)
			}
			queued = p.in == &l.trafficked
			return nil
		}))
		return queued
	}
	eventually(t, "the end of the looks", func() error { return equal("to look at", aged(), false) })
	say(t, server, client, "an answer")
	eventually(t, "a look again", func() error {
		return r.eachPair(func(l *loop, p *pair) error { return equal("to look at", p.in == &l.trafficked, true) })
	})
	b := block(t, server, client, 1) // the client takes nothing
	for range 3 {
		must(t, equal("to look at, with data on its way", aged(), true))
	}
	b.release(t)
}
