package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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

// Backend is one API server. The data path reads its atomics; a goroutine of its
// own checks it, and resolves its name, until it is removed.
type Backend struct {
	s          *Server
	name       string // HOST:PORT, in the one form of normalBackend
	discovered bool   // and not configured; guarded by the server's lock
	log        *slog.Logger

	addr       atomic.Pointer[sockaddr] // where connections go; nil while its name is not resolved
	resolveErr atomic.Pointer[error]
	tier       atomic.Int32
	readyAt    atomic.Int64 // when it recovered, on the server's clock; 0 when it needs no slow start
	drained    atomic.Bool  // removed, and the time for its connections is over

	traffic [][]traffic // by listener.index and loop.index

	_          cpu.CacheLinePad // what all loops write for each connection, away from what they read
	connecting atomic.Int64
	active     atomic.Int64
	total      atomic.Uint64
	retries    atomic.Uint64 // attempts after another backend had failed
	hedgeWon   atomic.Uint64
	hedgeLost  atomic.Uint64
	failures   [len(failureNames)]atomic.Uint64
	closed     [len(endNames)]atomic.Uint64
	_          cpu.CacheLinePad

	times   *backendTimes
	results sync.Map // check.Kind to *atomic.Uint64

	checker atomic.Pointer[check.Checker]
	status  atomic.Pointer[check.Status]
	stop    func() // ends its goroutines and waits for them; nil until start
}

// resolveEvery is how often a name is looked up again.
const resolveEvery = 10 * time.Second

func (s *Server) newBackend(name string, discovered bool) *Backend {
	b := &Backend{s: s, name: name, discovered: discovered, log: s.log.With("backend", name), times: newBackendTimes(name)}
	b.tier.Store(tierHopeful)
	for range s.cfg.Load().Listen { // which stays as it is
		b.traffic = append(b.traffic, make([]traffic, s.processors))
	}
	if a, err := netip.ParseAddrPort(name); err == nil {
		b.addr.Store(newSockaddr(a))
	}
	return b
}

// trafficOf is where a loop counts the bytes between a listener's clients and b.
func (b *Backend) trafficOf(ln *listener, l *loop) *traffic { return &b.traffic[ln.index][l.index] }

// moved is all bytes between the clients of the listener of that index and b.
func (b *Backend) moved(listener int) (received, sent uint64) {
	for i := range b.traffic[listener] {
		t := &b.traffic[listener][i]
		received += t.received.Load()
		sent += t.sent.Load()
	}
	return received, sent
}

// start begins to check the backend, in the way that the configuration says now.
func (b *Backend) start(cfg Config, f *files) {
	host, _, _ := net.SplitHostPort(b.name)
	serverName := cfg.BackendName
	if serverName == "" {
		serverName = host
	}
	checker := check.New(check.Config{
		Backend: b.name, Mode: check.Mode(cfg.Check), Path: cfg.CheckPath, Interval: cfg.CheckInterval, Timeout: cfg.CheckTimeout,
		Fall: cfg.CheckFall, Rise: cfg.CheckRise, Roots: f.roots, ServerName: serverName, Certificate: f.certificate, Log: b.s.log,
	}, b.where, check.Observer{Changed: b.changed, Checked: b.checked})
	b.checker.Store(checker)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.keepResolved(ctx) })
	wg.Go(func() { checker.Run(ctx) })
	b.stop = func() { cancel(); wg.Wait() }
}

// where is the address that checks and connections use.
func (b *Backend) where() (netip.AddrPort, error) {
	if to := b.addr.Load(); to != nil {
		return to.addrPort(), nil
	}
	if err := b.resolveErr.Load(); err != nil {
		return netip.AddrPort{}, *err
	}
	return netip.AddrPort{}, errors.New("its name is not resolved yet")
}

// keepResolved follows the backend's name. A name that cannot be resolved for a
// while keeps its last address: that is more likely DNS than the API server.
func (b *Backend) keepResolved(ctx context.Context) {
	if _, err := netip.ParseAddrPort(b.name); err == nil {
		return // it has none
	}
	t := time.NewTicker(resolveEvery)
	defer t.Stop()
	for {
		if err := b.resolve(ctx); err != nil && ctx.Err() == nil {
			if b.resolveErr.Swap(&err) == nil {
				b.log.Warn("backend's name not resolved", "err", err)
			}
		} else {
			b.resolveErr.Store(nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (b *Backend) resolve(ctx context.Context) error {
	host, port, err := splitHostPort(b.name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveEvery/2)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return err
	}
	var all []netip.AddrPort
	for _, ip := range found {
		a := netip.AddrPortFrom(ip.Unmap(), port)
		if own := ownListener(b.s.cfg.Load().Listen, a.String()); own != "" {
			return fmt.Errorf("%s is %s, which is this load balancer itself (it listens on %s)", b.name, a, own)
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return fmt.Errorf("%s has no address", host)
	}
	if now := b.addr.Load(); now != nil && slices.Contains(all, now.addrPort()) {
		return nil
	}
	b.addr.Store(newSockaddr(all[0]))
	b.log.Info("backend's name resolved", "address", all[0])
	return nil
}

// changed takes the checker's verdict over into the data path.
func (b *Backend) changed(st check.Status) {
	before := b.status.Swap(&st)
	b.rank()
	if before != nil && before.State != st.State && before.State != check.Unknown && st.State == check.Ready {
		b.readyAt.Store(b.s.clock())
	}
	b.s.poke()
}

// rank sets the tier anew. It is done after each check, for what ConnectFailed
// says and a check takes back at once is no change to the checker.
func (b *Backend) rank() { b.tier.Store(tierOf(b.checker.Load().Status())) }

func tierOf(st check.Status) int32 {
	switch {
	case st.State == check.Ready && !st.Suspect:
		return tierReady
	case !st.Suspect:
		return tierHopeful
	case st.Connectable && st.State != check.Dead, st.State == check.Unknown:
		return tierDoubted
	default:
		return tierBad
	}
}

func (b *Backend) checked(r check.Result) {
	b.rank()
	if r.NoVerdict == "" {
		count(&b.results, r.Kind)
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

// share is the part of its connections that a backend gets in its slow start.
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

// connected is told of a connection that was answered.
func (b *Backend) connected(took time.Duration, hedge bool) {
	b.times.connect.Observe(took.Seconds())
	if hedge {
		b.hedgeWon.Add(1)
	}
	b.checker.Load().ConnectOK()
}

// connectFailed is told of one that was not. What is this machine's own
// shortage is not held against the backend.
func (b *Backend) connectFailed(errno syscall.Errno) {
	f := failureOf(errno)
	b.failures[f].Add(1)
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL, unix.EAGAIN:
		return
	}
	b.doubt("connect: " + errno.Error())
}

// suspectSlow is told of one that is not answered yet.
func (b *Backend) suspectSlow() { b.doubt("connect: no answer yet") }

// doubt keeps new connections away, and has the backend checked at once.
func (b *Backend) doubt(why string) {
	b.checker.Load().ConnectFailed(why)
	b.rank()
}

// failure is why a connection to a backend failed.
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

// endReason is why a connection ended.
type endReason uint8

const (
	endClient    endReason = iota // the client closed it, or was reset
	endBackend                    // the backend did
	endDead                       // its backend was dead while another one was ready
	endDrain                      // the process stopped, and the drain time was over
	endRemoved                    // its backend was removed, and the drain time was over
	endHalfClose                  // one side had ended, and the other sent nothing for long
	endError                      // this machine could not go on with it
	endFirstByte                  // the client never sent anything
	endNoBackend                  // no backend answered in time
)

var endNames = [...]string{"client", "backend", "killed_dead", "drain", "removed", "half_close_timeout", "error", "first_byte_timeout", "no_backend"}
