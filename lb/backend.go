package lb

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"

	"kthwd/lb/check"
)

// Backend is one API server. The data path reads its atomics. A goroutine checks
// it until it is removed.
type Backend struct {
	s       *Server
	name    string // of its address, ADDRESS:PORT
	at      netip.AddrPort
	is      member // as last configured or discovered; guarded by Server.mu
	leaving bool   // its name no longer has its address; guarded by Server.mu

	addr     atomic.Pointer[sockaddr] // of at, in the kernel's form
	tier     atomic.Int32
	class    atomic.Int32
	weight   atomic.Int32
	delivers atomic.Bool  // dead by its checks, and its connections deliver, or it answers checks late
	late     atomic.Bool  // of delivers, the latter
	prodded  atomic.Bool  // its connections are asked for signs of life
	unproven atomic.Bool  // discovered, and it has never answered; used without checks only
	readyAt  atomic.Int64 // time of recovery, on the server's clock; 0 when it needs no slow start
	drained  atomic.Bool  // removed, and its drain time is over

	traffic atomic.Pointer[[][]traffic] // indexed by account.index, then loop.index; replaced under Server.mu

	_          cpu.CacheLinePad // separates fields that every loop writes per connection from fields it reads
	connecting atomic.Int64
	active     atomic.Int64
	total      atomic.Uint64
	retries    atomic.Uint64 // attempts made after another backend failed
	hedgeWon   atomic.Uint64
	hedgeLost  atomic.Uint64
	failures   [len(failureNames)]atomic.Uint64
	closed     [len(endNames)]atomic.Uint64
	_          cpu.CacheLinePad

	times   *backendTimes
	results sync.Map // check.Kind to *atomic.Uint64

	checker atomic.Pointer[check.Checker]
	status  atomic.Pointer[check.Status]
	stop    func() // stops its goroutines and waits for them; nil before start
}

func (s *Server) newBackend(m member) *Backend {
	b := &Backend{s: s, name: m.at.String(), at: m.at, times: newBackendTimes(m.at.String(), s.metrics.all)}
	b.tier.Store(tierHopeful)
	b.widen(len(s.accounts))
	b.addr.Store(newSockaddr(m.at))
	b.unproven.Store(m.discovered && s.cfg.Load().Check == CheckNone)
	b.configure(m)
	return b
}

// configure puts what is configured and discovered about b in force. The caller holds
// Server.mu.
func (b *Backend) configure(m member) {
	b.is = m
	b.weight.Store(int32(m.weight))
	if b.unproven.Load() {
		m.class = classLast
	}
	b.class.Store(m.class)
}

// trafficOf returns the counters of loop l for bytes between clients of ln and b.
func (b *Backend) trafficOf(ln *listener, l *loop) *traffic {
	return &(*b.traffic.Load())[ln.index][l.index]
}

// widen gives b counters for that many addresses that are listened on. The loops count on
// in those it has. The caller holds Server.mu.
func (b *Backend) widen(listeners int) {
	var all [][]traffic
	if old := b.traffic.Load(); old != nil {
		all = slices.Clone(*old)
	}
	for len(all) < listeners {
		all = append(all, make([]traffic, b.s.processors))
	}
	b.traffic.Store(&all)
}

// bytesMoved totals the bytes exchanged between b and the clients of the listener with
// that index.
func (b *Backend) bytesMoved(listener int) (received, sent uint64) {
	of := (*b.traffic.Load())[listener]
	for i := range of {
		t := &of[i]
		received += t.received.Load()
		sent += t.sent.Load()
	}
	return received, sent
}

// start starts checking the backend, as cfg says.
func (b *Backend) start(cfg Config, f *files) {
	checker := check.New(check.Config{
		Backend: b.name, Mode: check.Mode(cfg.Check), Path: cfg.CheckPath, Interval: cfg.CheckInterval, Line: b.s.o.checkLine, Hold: b.s.o.checkHold, Late: killDelay, Timeout: cfg.CheckTimeout,
		Fall: cfg.CheckFall, Rise: cfg.CheckRise, Roots: f.roots, ServerName: b.is.serverName, Certificate: f.certificate, Sources: cfg.sourceAddresses(), Log: b.s.log,
	}, func() (netip.AddrPort, error) { return b.at, nil }, check.Observer{Changed: b.changed, Checked: b.checked})
	b.checker.Store(checker)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { checker.Run(ctx) })
	b.stop = func() { cancel(); wg.Wait() }
}

// changed publishes the checker's verdict to the data path.
func (b *Backend) changed(st check.Status) {
	before := b.status.Swap(&st)
	b.rank()
	if before != nil && before.State != st.State && before.State != check.Unknown && st.State == check.Ready {
		b.readyAt.Store(b.s.clock())
	}
	if b.tier.Load() != tierReady {
		b.s.hurryNames(b)
	}
	if before != nil && before.Suspect && !st.Suspect {
		b.delivers.Store(false)
	}
	b.s.notifyWatcher()
}

// rank sets the tier. It runs after each check, because the checker reports no change
// when a check revokes at once what ConnectFailed said.
func (b *Backend) rank() { b.tier.Store(tierOf(b.checker.Load().Status())) }

func tierOf(st check.Status) int32 {
	switch {
	case st.State == check.Ready && !st.Suspect:
		return tierReady
	case !st.Suspect:
		return tierHopeful
	case st.Connectable && st.State != check.Dead && st.Leaving:
		return tierLeaving
	case st.Connectable && st.State != check.Dead, st.State == check.Unknown:
		return tierDoubted
	default:
		return tierBad
	}
}

func (b *Backend) checked(r check.Result) {
	b.rank()
	if !b.checker.Load().Status().Suspect && b.prodded.Swap(false) {
		b.s.onEachLoop(func(l *loop) { l.calm(b) })
	}
	if b.at.Addr().Zone() != "" { // its number changes when the interface is made anew
		b.addr.Store(newSockaddr(b.at))
	}
	if r.NoVerdict == "" {
		count(&b.results, r.Kind)
		if (r.ConnectPhase || r.Kept) && r.Kind == check.KindTimeout && b.active.Load() > 0 {
			b.prodded.Store(true)
			b.s.onEachLoop(func(l *loop) { l.prod(b) })
		}
	} else if which, ok := limitOf(r.Shortage); ok {
		b.s.reach(which)
	}
	b.times.check(r)
}

func count[K comparable](m *sync.Map, k K) {
	n, ok := m.Load(k)
	if !ok {
		n, _ = m.LoadOrStore(k, new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
}

// share is the fraction of its normal connections that b gets during its slow start.
func (b *Backend) share(now int64) float64 {
	at := b.readyAt.Load()
	if at == 0 {
		return 1
	}
	slow := b.s.settings().slowStart
	passed := now - at
	if passed >= slow {
		b.readyAt.CompareAndSwap(at, 0)
		return 1
	}
	return max(0.1, float64(passed)/float64(slow))
}

// connected records an answered connection.
func (b *Backend) connected(took time.Duration, hedge bool) {
	b.times.connected(took)
	if hedge {
		b.hedgeWon.Add(1)
	}
	b.checker.Load().ConnectOK()
	if b.unproven.Load() {
		b.proven()
	}
}

// proven records the first answer of a discovered backend that is not checked.
func (b *Backend) proven() {
	b.unproven.Store(false)
	b.class.CompareAndSwap(classLast, classPrimary)
}

// connectFailed records a failed connection. A shortage on this machine is a limit that is
// reached, and does not count against the backend.
func (b *Backend) connectFailed(errno syscall.Errno) {
	if which, ok := limitOf(errno); ok && !(errno == unix.EADDRNOTAVAIL && !b.s.hasSource(b.at)) {
		b.s.reach(which)
		return
	}
	b.failures[failureOf(errno)].Add(1)
	b.suspect("connect: " + errno.Error())
}

// suspectSlow records a connection that is not answered yet.
func (b *Backend) suspectSlow() { b.suspect("connect: no answer yet") }

// suspect makes other backends preferred, and has the checker check b at once.
func (b *Backend) suspect(why string) {
	b.checker.Load().ConnectFailed(why)
	b.rank()
}

// failure is the reason a connection to a backend failed.
type failure uint8

const (
	failRefused failure = iota
	failTimeout
	failUnreachable
	failReset
	failOther
)

var failureNames = [...]string{"refused", "timeout", "unreachable", "reset", "other"}

func failureOf(errno syscall.Errno) failure {
	switch errno {
	case unix.ECONNREFUSED:
		return failRefused
	case unix.ETIMEDOUT:
		return failTimeout
	case unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN:
		return failUnreachable
	case unix.ECONNRESET:
		return failReset
	}
	return failOther
}

// endReason is the reason a connection ended.
type endReason uint8

const (
	endClient    endReason = iota // the client closed or reset it
	endBackend                    // the backend closed or reset it
	endDead                       // the backend was dead while another one was ready
	endDrain                      // the process stopped, and the drain time was over
	endRemoved                    // the backend was removed, and the drain time was over
	endHalfClose                  // one side had ended, and the other was silent for HalfCloseTimeout
	endError                      // an error on this machine
	endFirstByte                  // the client never sent anything
	endNoBackend                  // no backend answered in time
)

var endNames = [...]string{"client", "backend", "killed_dead", "drain", "removed", "half_close_timeout", "error", "first_byte_timeout", "no_backend"}
