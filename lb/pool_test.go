package lb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/lb/check"
)

// The connections of a dead backend are cut, but only once another one is ready.
func TestDeadBackendIsCut(t *testing.T) {
	a, b := newAPIServer(t), newAPIServer(t)
	b.status.Store(500)
	r := run(t, checkedConfig(a, b), Options{})
	r.awaitState(a, check.Ready)
	r.awaitState(b, check.NotReady)
	v := r.visit()
	v.at(t, a)
	a.refuse()
	r.awaitState(a, check.Dead)
	pause(200 * time.Millisecond)
	v.at(t, a) // its listener is dead, but no better backend is left
	b.status.Store(200)
	r.awaitState(b, check.Ready)
	v.cut(t)
	r.visit().at(t, b)
	must(t, equal("killed_dead", r.backend(a.addr).closed[endDead].Load(), 1))
}

// A backend that said that it is about to stop, and then accepts no connections, still answers
// what it was asked before: its connections stay for killDelay. When nobody is ready, new ones
// go to one that is in doubt rather than to it.
func TestLeavingBackend(t *testing.T) {
	shortEvidence(t, 500*time.Millisecond)
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checkedConfig(a, b), Options{})
	r.awaitTier(a, tierReady)
	r.awaitTier(b, tierReady)
	v := r.visit()
	v.at(t, a)
	a.fail("kthwd-leaving")
	r.awaitTier(a, tierLeaving)
	b.fail("etcd")
	r.awaitTier(b, tierDoubted)
	for range 5 {
		r.visit().at(t, b)
	}
	b.status.Store(200)
	r.awaitTier(b, tierReady)
	a.refuse()
	r.awaitState(a, check.Dead)
	died := r.Status().Backends[0].Since // by the balancer's clock: this test may be late
	v.cut(t)
	if after := time.Since(died); after < 300*time.Millisecond {
		t.Errorf("cut %v after it was dead", after)
	}
	must(t, equal("killed_dead", r.backend(a.addr).closed[endDead].Load(), 1))
}

// A backend that accepts but does not answer keeps its connections for killDelay, and
// for good when it recovers in time.
func TestSuspendedBackendIsCutLater(t *testing.T) {
	defer func(d time.Duration) { killDelay = d }(killDelay)
	killDelay = 500 * time.Millisecond
	a, b := newAPIServer(t), newAPIServer(t)
	cfg := checksTimeOut(a, b)
	t.Run("for long", func(t *testing.T) {
		r := run(t, cfg, Options{})
		r.awaitState(a, check.Ready)
		r.awaitState(b, check.Ready)
		v := r.visit()
		v.at(t, a)
		a.suspend()
		r.awaitState(a, check.Dead)
		died := r.Status().Backends[0].Since // by the balancer's clock: this test may be late
		r.visit().at(t, b)
		v.cut(t)
		if after := time.Since(died); after < 300*time.Millisecond {
			t.Errorf("cut %v after it was dead", after)
		}
		a.resume()
	})
	t.Run("for a moment", func(t *testing.T) {
		killDelay = time.Hour
		r := run(t, cfg, Options{})
		r.awaitState(a, check.Ready)
		r.awaitState(b, check.Ready)
		v := r.visit()
		v.at(t, a)
		a.suspend()
		r.awaitState(a, check.Dead)
		a.resume()
		r.awaitState(a, check.Ready)
		v.at(t, a)
	})
}

// Doomed pairs whose backend is alive again return to the queues they came from.
func TestReprieve(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.HalfCloseTimeout = 300 * time.Millisecond
	r := run(t, cfg, Options{})
	b := r.backend(p.addr)
	client, server, _ := r.pairUp(p)
	half, other, _ := r.pairUp(p)
	must(t, half.CloseWrite(), expectEOF(other))
	for _, l := range r.loops {
		l.call(func() {
			l.doom(b, endDead)
			l.reprieve(b)
			if !l.doomed.empty() {
				t.Error("some are still doomed")
			}
		})
	}
	say(t, client, server, "it lives")
	must(t, expectEOF(half)) // its half-close timeout still applies
}

// Many connections are cut, a few at a time, until none is left.
func TestManyAreCut(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{balanceEvery: time.Hour}) // a pair on its way between loops is cut a second later
	b := r.backend(p.addr)
	const conns = 3*doomedPerTick + 10
	for range conns {
		r.pairUp(p)
	}
	r.onEachLoop(func(l *loop) { l.doom(b, endDead); l.doom(b, endDead) })
	r.empty()
	must(t, equal("killed_dead", b.closed[endDead].Load(), conns))
}

// A backend that is not ready keeps its connections and gets no new ones.
func TestNotReadyDrains(t *testing.T) {
	a, b := newAPIServer(t), newAPIServer(t)
	r := run(t, checkedConfig(a, b), Options{})
	r.awaitState(a, check.Ready)
	r.awaitState(b, check.Ready)
	v := r.visit()
	v.at(t, a)
	a.status.Store(500)
	r.awaitState(a, check.NotReady)
	for range 5 {
		r.visit().at(t, b)
	}
	v.at(t, a)
	b.status.Store(503) // no backend is ready: any is used
	r.awaitState(b, check.NotReady)
	must(t, equal("fail open", r.Status().FailOpen, true))
	if _, err := r.visit().who(); err != nil {
		t.Errorf("fail open: %v", err)
	}
	v.at(t, a)
}

// load is a stream of clients, each with one question.
type load struct {
	stop     context.CancelFunc
	all      sync.WaitGroup
	answered atomic.Int64
	failed   atomic.Pointer[error]
}

func (r *rig) load(clients int) *load {
	ctx, cancel := context.WithCancel(r.t.Context())
	l := &load{stop: cancel}
	for range clients {
		l.all.Go(func() {
			for ctx.Err() == nil {
				if err := ask(r.addr); err != nil {
					l.failed.Store(&err)
					return
				}
				l.answered.Add(1)
			}
		})
	}
	return l
}

func ask(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := write(c, "question"); err != nil {
		return err
	}
	var b [6]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return fmt.Errorf("client %v: %w", c.LocalAddr(), err)
	}
	return nil
}

func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.all.Wait()
	if err := l.failed.Load(); err != nil {
		t.Error(*err)
	}
	if l.answered.Load() == 0 {
		t.Error("no client was answered")
	}
}

func TestReloadUnderLoad(t *testing.T) {
	var servers []*peer
	for range 4 {
		servers = append(servers, newPeerAt(t, "127.0.0.1:0", answer))
	}
	r := run(t, testConfig(servers[0].addr, servers[1].addr), Options{})
	l := r.load(4)
	for i := range 30 {
		cfg := *r.cfg.Load()
		cfg.Backends = []string{servers[i%4].addr, servers[(i+1)%4].addr}
		cfg.Balance = allBalances[i%len(allBalances)]
		cfg.CheckFall = 1 + i%3
		before := l.answered.Load()
		must(t, r.Reload(cfg))
		eventually(t, "clients are answered", func() error {
			if l.answered.Load() < before+20 && l.failed.Load() == nil {
				return errors.New("not yet")
			}
			return nil
		})
	}
	l.end(t)
	eventually(t, "removed backends are forgotten", func() error { return equal("backends", len(r.allBackends()), 2) })
	r.empty()
}

func TestRemovedBackendDrains(t *testing.T) {
	p, q := newPeer(t), newPeer(t)
	cfg := testConfig(p.addr)
	cfg.DrainTimeout = time.Hour
	r := run(t, cfg, Options{})
	cfg = *r.cfg.Load()
	client, server, _ := r.pairUp(p)
	with := func(backends ...string) {
		t.Helper()
		cfg.Backends = backends
		must(t, r.Reload(cfg))
	}
	with(q.addr)
	must(t, equal("state", r.Status().Backends[1].State, "draining")) // listed after those in use
	r.pairUp(q)
	say(t, client, server, "goes on")
	r.mu.Lock()
	drain := r.draining[r.Server.backends[0]]
	r.mu.Unlock()
	with(p.addr) // back before the drain ends
	must(t, equal("backends", len(r.allBackends()), 2), equal("its drain goes on", drain.Stop(), false))
	say(t, client, server, "and stays")
	must(t, equal("state", r.Status().Backends[0].State, "ready"))
	r.pairUp(p)
	with(q.addr)
	removed := r.backend(p.addr)
	r.endDrains()
	must(t, expectEOF(client))
	must(t, expectReset(server))
	eventually(t, "both are cut", func() error { return equal("removed", removed.closed[endRemoved].Load(), 2) })
	eventually(t, "it is forgotten", func() error { return equal("backends", len(r.allBackends()), 1) })
}

// A connection that was being made when its backend's drain ended is cut as well.
func TestRemovedWhileConnecting(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	b := r.backend(p.addr)
	b.drained.Store(true)
	c := r.dial()
	must(t, write(c, "12345678"), expectGone(c))
	r.empty()
	must(t, equal("removed", b.closed[endRemoved].Load(), 1))
}

// A connection doomed for that reason is cut even if it has moved to another loop.
func TestRemovedWhileMoving(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	b := r.backend(p.addr)
	client, _, _ := r.pairUp(p)
	b.drained.Store(true)
	for _, l := range r.loops {
		l.call(func() {
			l.doom(b, endRemoved)
			for _, p := range l.detachPairs(1, anyPair) {
				l.attach(p)
			}
		})
	}
	must(t, expectEOF(client))
	r.empty()
	must(t, equal("removed", b.closed[endRemoved].Load(), 1))
}

func TestReloadChangesChecks(t *testing.T) {
	a := newAPIServer(t)
	r := run(t, checkedConfig(a), Options{})
	r.awaitState(a, check.Ready)
	v := r.visit()
	v.at(t, a)
	cfg := *r.cfg.Load()
	cfg.CheckPath = "/livez"
	must(t, r.Reload(cfg))
	eventually(t, "the new path is asked for", func() error {
		if _, ok := a.paths.Load("/livez"); !ok {
			return errors.New("it is not")
		}
		return nil
	})
	must(t, equal("check", r.Status().Check, "https /livez"))
	cfg.Check = CheckNone
	must(t, r.Reload(cfg))
	a.status.Store(500)
	r.awaitState(a, check.Ready)
	v.at(t, a)
	cfg.Check = CheckHTTPS
	must(t, r.Reload(cfg))
	r.awaitState(a, check.NotReady)
	cfg.Check = CheckNone
	must(t, r.Reload(cfg))
	r.awaitState(a, check.Ready)
	v.at(t, a)
}

func TestReloadRefused(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	was := r.cfg.Load()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	must(t, os.WriteFile(empty, []byte("nothing"), 0o600))
	tests := []struct {
		field  string
		change func(*Config)
	}{
		{"Listen", func(c *Config) { c.Listen = nil }},
		{"UpgradeSocket", func(c *Config) { c.UpgradeSocket = "@other" }},
		{"BackendCA", func(c *Config) { c.BackendCA = "/no/such/file" }},
		{"BackendCA", func(c *Config) { c.BackendCA = empty }},
		{"CheckCert", func(c *Config) { c.CheckCert, c.CheckKey = empty, empty }},
		{"Balance", func(c *Config) { c.Balance = "best" }},
		{"Backends", func(c *Config) { c.Backends = nil }},
		{"Backends", func(c *Config) { c.Backends = []string{r.addr} }},
		{"AccessLog", func(c *Config) { c.AccessLog = filepath.Join(t.TempDir(), "none", "access.log") }},
	}
	for _, tt := range tests {
		cfg := *was
		cfg.HedgeAfter = time.Minute
		tt.change(&cfg)
		err := r.Reload(cfg)
		var p *Problem
		if !errors.As(err, &p) || !strings.Contains(err.Error(), tt.field) {
			t.Errorf("%s: got %v", tt.field, err)
		}
		must(t, equal("configuration", r.cfg.Load(), was), equal("hedge", r.settings().hedgeAfter, int64(was.HedgeAfter)),
			equal("backends", len(r.allBackends()), 1))
	}
	must(t, equal("errors counted", r.reloads[0], uint64(len(tests))))
	client, server, _ := r.pairUp(p)
	say(t, client, server, "as before")
}

func TestDiscovered(t *testing.T) {
	p, q := newPeer(t), newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	must(t, r.SetDiscovered(nil), equal("backend", r.Status().Backends[0].Source, "static"))
	must(t, r.SetDiscovered([]string{q.addr, p.addr, q.addr, r.addr})) // a duplicate, and the balancer itself
	st := r.Status()
	must(t, equal("backends", len(st.Backends), 2), equal("pool", len(r.pool.Load().backends), 2))
	for _, b := range st.Backends {
		must(t, equal("source of "+b.Address, b.Source, "discovered"))
	}
	_, err := prometheusGather(r)
	must(t, err)
	must(t, r.SetDiscovered([]string{q.addr}))
	for at := p; at != q; { // p, the last resort, until q has answered
		_, _, at = r.pairUp(p, q)
	}
	r.pairUp(q)
	must(t, r.Reload(*r.cfg.Load()), equal("pool", r.pool.Load().backends[0].name, q.addr))
	if err := r.SetDiscovered([]string{"no port"}); err == nil {
		t.Error("a bad address is taken")
	}
	must(t, r.SetDiscovered([]string{p.addr, q.addr})) // back before the drain ends
	must(t, equal("backends", len(r.allBackends()), 2))
}

// A reload of the access log waits for loops that Run has yet to start, and lets Run go on.
func TestReloadBeforeLoopsRun(t *testing.T) {
	cfg := testConfig("127.0.0.1:1")
	cfg.AccessLog = filepath.Join(t.TempDir(), "access.log")
	s, err := New(cfg, Options{})
	must(t, err)
	must(t, s.openAccessLog())
	defer s.closeAccessLog()
	must(t, s.makeLoops())
	first, reloaded := s.access.Load(), make(chan error, 1)
	go func() { reloaded <- s.Reload(cfg) }()
	eventually(t, "the reload has opened the file and holds no lock", func() error {
		if s.access.Load() == first || !s.changing.TryLock() {
			return errors.New("not yet")
		}
		s.changing.Unlock()
		return nil
	})
	select {
	case err := <-reloaded:
		t.Errorf("the reload ended before a loop ran: %v", err)
	default:
	}
	s.stopLoops()
	must(t, <-reloaded)
	s.stopBackends()
}

// All exported methods are called concurrently, from before Run until after it.
func TestConcurrentCalls(t *testing.T) {
	a, b := newPeerAt(t, "127.0.0.1:0", answer), newPeerAt(t, "127.0.0.1:0", answer)
	dir := t.TempDir()
	cfg := testConfig(a.addr)
	cfg.DrainTimeout = 5 * time.Millisecond
	cfg.AccessLog = filepath.Join(dir, "access.log")
	r := begin(t, cfg, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	again := func(f func(i int)) {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				f(i)
			}
		})
	}
	again(func(i int) {
		c := *r.cfg.Load()
		c.Backends = [][]string{{a.addr}, {b.addr}, {a.addr, b.addr}}[i%3]
		c.AccessLog = []string{cfg.AccessLog, ""}[i%2]
		c.CheckFall = 1 + i%4
		if err := r.Reload(c); err != nil {
			t.Error(err)
		}
	})
	again(func(int) { r.Status() })
	again(func(int) {
		if _, err := prometheusGather(r); err != nil {
			t.Error(err)
		}
	})
	again(func(i int) { r.SetDiscovered([][]string{{a.addr}, {b.addr}}[i%2]) })
	r.awaitReady()
	l := r.load(2)
	eventually(t, "clients are answered", func() error {
		if l.answered.Load() < 200 && l.failed.Load() == nil {
			return errors.New("not yet")
		}
		return nil
	})
	l.stop()
	l.all.Wait()
	r.stop()
	must(t, receive(t, "the end of Run", r.ended))
	cancel()
	all.Wait()
	retire, err := r.reopenAccessLog("")
	must(t, err)
	retire()
	r.stopBackends()
}

func prometheusGather(r *rig) (int, error) {
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(r.Collector()); err != nil {
		return 0, err
	}
	families, err := reg.Gather()
	return len(families), err
}
