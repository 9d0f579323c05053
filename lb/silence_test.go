package lb

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

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
		{"data that were just sent again", unix.TCPInfo{Last_ack_recv: longAgo, Unacked: 1, Retransmits: 1}, false},
		{"data that were sent again and again", unix.TCPInfo{Last_ack_recv: longAgo, Unacked: 1, Retransmits: 2}, true},
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

// vanish makes the kernel drop all packets for a connection, so that its peer gets no answer, until
// back is called.
func vanish(t *testing.T, c *net.TCPConn) (back func()) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	var failed error
	must(t, raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	}), failed)
	return func() {
		must(t, raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0) }), failed)
	}
}

// A peer that vanishes while data are on their way to it is noticed, and a peer that comes back
// reads no orderly end.
func TestVanishedPeers(t *testing.T) {
	every, limit := lookEvery, silenceLimit
	lookEvery, silenceLimit = 100*time.Millisecond, 500*time.Millisecond
	t.Cleanup(func() { lookEvery, silenceLimit = every, limit })
	for _, name := range []string{"client", "backend"} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t)
			r := run(t, testConfig(p.addr), Options{})
			client, server, _ := r.pairUp(p)
			say(t, client, server, "a question")
			must(t, r.eachPair(func(l *loop, p *pair) error { // as if it were old enough
				if p.in == &l.young {
					l.requeue(&l.young, p, l.now)
				}
				return nil
			}))
			lost, other := client, server
			if name == "backend" {
				lost, other = server, client
			}
			back := vanish(t, lost)
			_, err := other.Write([]byte("half of a line"))
			must(t, err, other.SetReadDeadline(time.Now().Add(patience)))
			if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other end: got %v, want a reset", err)
			}
			r.empty()
			back()
			must(t, lost.SetDeadline(time.Now().Add(patience)))
			_, wrote := lost.Write([]byte("more")) // which asks for an answer, unless it came just now
			if _, err := lost.Read(make([]byte, 1)); !errors.Is(errors.Join(wrote, err), syscall.ECONNRESET) {
				t.Errorf("the one that came back: got %v, want a reset", errors.Join(wrote, err))
			}
		})
	}
}

// A connection that owes answers when its backend is well again keeps its time for them.
func TestCalmWaitsForAnswers(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	client, server, _ := r.pairUp(p)
	say(t, client, server, "a question")
	b := r.backend(p.addr)
	back := vanish(t, server)
	must(t, r.eachPair(func(l *loop, _ *pair) error { l.prod(b); return nil }))
	probes := func(p *pair) (asked uint8, limit int, err error) {
		info, err := unix.GetsockoptTCPInfo(int(p.server.fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return 0, 0, err
		}
		limit, err = unix.GetsockoptInt(int(p.server.fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
		return info.Probes, limit, err
	}
	eventually(t, "a probe without an answer", func() error {
		return r.eachPair(func(_ *loop, p *pair) error {
			if asked, _, err := probes(p); err != nil || asked == 0 {
				return fmt.Errorf("asked %d times, %w", asked, err)
			}
			return nil
		})
	})
	must(t, r.eachPair(func(l *loop, p *pair) error {
		l.calm(b)
		_, limit, err := probes(p)
		return errors.Join(err, equal("asked for signs of life", p.prodded, true), equal("probes", limit, proddedProbes))
	}))
	back()
	eventually(t, "the end of the probes", func() error {
		return r.eachPair(func(l *loop, p *pair) error {
			l.calm(b) // as after each check
			_, limit, err := probes(p)
			return errors.Join(err, equal("asked for signs of life", p.prodded, false), equal("probes", limit, 7))
		})
	})
	say(t, server, client, "an answer")
}
