package lb

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRefusedBackend(t *testing.T) {
	p, dead := newPeer(t), unused(t)
	cfg := testConfig(dead, p.addr)
	cfg.Balance = FirstAlive
	r := run(t, cfg, Options{})
	begun := time.Now()
	for range 20 {
		client, server, _ := r.pairUp(p)
		say(t, client, server, "as if nothing were wrong")
		client.Close()
		server.Close()
	}
	b := r.backend(dead)
	if n := b.failures[failRefused].Load(); n == 0 || n > 2+avoidedTimes(begun) {
		t.Errorf("%d attempts were refused, want one: it is avoided from then on", n)
	}
	must(t, equal("retries with the other", r.backend(p.addr).retries.Load(), b.failures[failRefused].Load()))
	r.empty()
}

// avoidedTimes is how often at most the time may have ended since then in which a backend
// without checks is avoided: check.minAvoid.
func avoidedTimes(since time.Time) uint64 { return uint64(time.Since(since) / (5 * time.Second)) }

func TestHeldUntilABackendListens(t *testing.T) {
	dead := unused(t)
	cfg := testConfig(dead)
	cfg.HoldTimeout = time.Hour
	r := run(t, cfg, Options{})
	var clients []*net.TCPConn
	for range 20 {
		c := r.dial()
		must(t, write(c, "question"))
		clients = append(clients, c)
	}
	eventually(t, "all are held", func() error { return equal("held", r.Status().Held, 20) })
	newPeerAt(t, dead, answer)
	begun := time.Now()
	for _, c := range clients {
		hear(t, c, "answer")
	}
	t.Logf("they were served after %v", time.Since(begun))
	for _, c := range clients {
		c.Close()
	}
	r.empty()
}

// answer starts a backend that answers "question".
func answer(c net.Conn) {
	var b [8]byte
	for {
		if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "question" {
			return
		}
		if write(c, "answer") != nil {
			return
		}
	}
}

func write(c net.Conn, text string) error {
	_, err := io.WriteString(c, text)
	return err
}

// expectGone expects an orderly end or a reset.
func expectGone(c net.Conn) error {
	var b [1]byte
	if _, err := c.Read(b[:]); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		return errors.Join(errors.New("the connection has not ended"), err)
	}
	return nil
}

func TestHoldLimits(t *testing.T) {
	for _, tt := range []struct {
		name       string
		held       int
		timeout    time.Duration
		want       int
		refusedNow int
	}{
		{"as many as may be held", 3, 300 * time.Millisecond, 3, 3},
		{"none may be held", 0, 300 * time.Millisecond, 0, 6},
		{"holding is off", 100, 0, 0, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(unused(t))
			cfg.MaxHeld, cfg.HoldTimeout = tt.held, tt.timeout
			r := run(t, cfg, Options{})
			var clients []*net.TCPConn
			for i := range 6 { // one at a time: two loops may both see the last place
				c := r.dial()
				must(t, write(c, "x"))
				clients = append(clients, c)
				eventually(t, "held or refused", func() error {
					n := int(r.heldNow.Load()) + int(r.listeners[0].rejected[rejectNoBackend].Load())
					if n <= i {
						return fmt.Errorf("%d of %d", n, i+1)
					}
					return nil
				})
			}
			for _, c := range clients {
				must(t, expectGone(c))
			}
			must(t, equal("no_backend", r.listeners[0].rejected[rejectNoBackend].Load(), 6))
			r.empty()
		})
	}
}

func TestHedge(t *testing.T) {
	p, hole := newPeer(t), blackHole(t)
	cfg := testConfig(hole, p.addr)
	cfg.Balance = FirstAlive
	cfg.ConnectTimeout, cfg.ConnectBudget = time.Hour, time.Hour // nothing but a hedge serves it
	r := run(t, cfg, Options{})
	begun := time.Now()
	client, server, _ := r.pairUp(p)
	took := time.Since(begun)
	say(t, client, server, "hello")
	if took < 200*time.Millisecond {
		t.Errorf("served after %v, want %v or more", took, cfg.HedgeAfter)
	}
	b := r.backend(p.addr)
	must(t, equal("hedges won", b.hedgeWon.Load(), 1))
	if tier := r.backend(hole).tier.Load(); tier == tierReady {
		t.Error("the slow backend is still chosen first")
	}
	for range 10 {
		r.pairUp(p)
	}
	if n := b.hedgeWon.Load() + b.hedgeLost.Load(); n > 1+avoidedTimes(begun) {
		t.Errorf("%d hedges, want one: the slow backend is avoided from then on", n)
	}
	must(t, equal("connections", b.total.Load(), 11))
	must(t, equal("to the slow one", r.backend(hole).connecting.Load(), 0))
}

// Where one family has no way, the first hedge finds the other one, whichever backend is next by
// turns.
func TestHedgeOfTheOtherFamily(t *testing.T) {
	for _, balance := range []string{LeastConnections, RoundRobin} {
		t.Run(balance, func(t *testing.T) {
			p := newPeer(t)
			backends := []string{p.addr}
			for range 6 {
				backends = append(backends, blackHoleAt(t, "[::1]:0"))
			}
			cfg := testConfig(backends...)
			cfg.Balance = balance
			cfg.ConnectTimeout, cfg.ConnectBudget = time.Hour, time.Hour // nothing but a hedge serves it
			r := run(t, cfg, Options{})
			good := r.backend(p.addr)
			hedged := func() uint64 { return good.hedgeWon.Load() }
			for i := 0; hedged() == 0 && i < len(backends); i++ { // some client comes to a hole
				client, server, _ := r.pairUp(p)
				say(t, client, server, "hello")
			}
			must(t, equal("hedges won", hedged(), 1))
			for _, hole := range backends[1:] {
				must(t, equal("second attempts to "+hole, r.backend(hole).retries.Load(), 0))
			}
		})
	}
}

// The fast backend is found even with more slow backends than concurrent attempts.
func TestManySlowBackends(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(blackHole(t), blackHole(t), blackHole(t), blackHole(t), p.addr)
	cfg.Balance, cfg.HedgeAfter, cfg.ConnectTimeout = FirstAlive, 50*time.Millisecond, 300*time.Millisecond
	r := run(t, cfg, Options{})
	client, server, _ := r.pairUp(p)
	say(t, client, server, "found")
	client.Close()
	server.Close()
	r.empty()
}

func TestConnectBudget(t *testing.T) {
	hole := blackHole(t)
	cfg := testConfig(hole)
	cfg.ConnectTimeout, cfg.ConnectBudget, cfg.HoldTimeout = 200*time.Millisecond, 300*time.Millisecond, 0
	r := run(t, cfg, Options{})
	c := r.dial()
	begun := time.Now()
	must(t, write(c, "x"), expectGone(c))
	if took := time.Since(begun); took < 150*time.Millisecond {
		t.Errorf("given up after %v", took)
	}
	must(t, equal("timeouts", r.backend(hole).failures[failTimeout].Load(), 1))
	r.empty()
}

// A client that leaves frees all its resources, in every phase.
func TestClientLeavesWhileWaiting(t *testing.T) {
	for _, tt := range []struct {
		name    string
		backend func(*testing.T) string
		waits   func(*Backend, *rig) int64
		leave   func(*net.TCPConn)
	}{
		{"connecting, reset", blackHole, func(b *Backend, _ *rig) int64 { return b.connecting.Load() }, reset},
		{"connecting, FIN", blackHole, func(b *Backend, _ *rig) int64 { return b.connecting.Load() }, func(c *net.TCPConn) { c.Close() }},
		{"held, reset", unused, func(_ *Backend, r *rig) int64 { return r.heldNow.Load() }, reset},
		{"held, FIN", unused, func(_ *Backend, r *rig) int64 { return r.heldNow.Load() }, func(c *net.TCPConn) { c.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(tt.backend(t))
			cfg.ConnectTimeout, cfg.ConnectBudget, cfg.HoldTimeout = 500*time.Millisecond, 500*time.Millisecond, time.Minute
			r := run(t, cfg, Options{})
			c := r.dial()
			must(t, write(c, "x"))
			eventually(t, "it waits", func() error { return equal("waiting", tt.waits(r.allBackends()[0], r), 1) })
			tt.leave(c)
			r.empty()
		})
	}
}

func reset(c *net.TCPConn) { c.SetLinger(0); c.Close() }

func TestConnectFailures(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		want  failure
		held  bool // counts against the backend
	}{
		{unix.ECONNREFUSED, failRefused, true},
		{unix.ETIMEDOUT, failTimeout, true},
		{unix.EHOSTUNREACH, failUnreachable, true},
		{unix.ENETUNREACH, failUnreachable, true},
		{unix.ECONNRESET, failReset, true},
		{unix.EDESTADDRREQ, failOther, true},
		{unix.EMFILE, failOther, false},
		{unix.ENFILE, failOther, false},
		{unix.ENOBUFS, failOther, false},
		{unix.ENOMEM, failOther, false},
		{unix.EADDRNOTAVAIL, failOther, false},
		{unix.EAGAIN, failOther, false},
	} {
		t.Run(unix.ErrnoName(tt.errno), func(t *testing.T) {
			r := run(t, testConfig("192.0.2.1:1"), Options{})
			b := r.allBackends()[0]
			b.connectFailed(tt.errno)
			which, short := limitOf(tt.errno)
			must(t, equal("a limit", short, !tt.held), equal("avoided", b.tier.Load() != tierReady, tt.held))
			if short {
				must(t, equal("counted as limit", r.limits.all[which].hits.Load(), 1), equal("errors", r.Status().Backends[0].Errors, 0))
			} else {
				must(t, equal("counted", b.failures[tt.want].Load(), 1))
			}
		})
	}
}
