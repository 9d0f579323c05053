// Package lb is a TCP load balancer for kube-apiservers.
//
//	s, err := lb.New(cfg, lb.Options{Log: log})
//	…
//	err = s.Run(ctx, ready)
//
// It balances connections, not requests: the content of a connection is TLS between a
// client and an API server, and stays private to them. It does three things: it sends
// a new connection to a backend that will answer, it cuts a connection that will never
// be answered, and it leaves all others alone, for hours, through changes of its
// configuration and of its own binary.
//
// One goroutine per backend checks it (package check); the verdict is one number, the
// tier, which the data path reads from the Backend (choose.go). Connections are accepted
// through tcpproxy (listen.go, accept.go) by a few loops (loop.go). A loop is one
// goroutine around an epoll set; it connects to a backend (connect.go) and moves the
// bytes (pair.go, pipe.go). A new process takes over the listeners and the live
// connections of an old one (upgrade.go).
//
// The package links neither Kubernetes nor etcd. It does not decrypt TLS, does not
// retry a request, and does not move healthy connections between backends.
package lb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/inetaf/tcpproxy"
	"golang.org/x/sys/cpu"

	"kthwd/lb/check"
)

// Options are the settings that do not come from the configuration. The zero value is
// valid and logs nothing.
type Options struct {
	Log *slog.Logger
	// Sockets are listening sockets opened by the service manager. Those with an
	// address in Config.Listen are used. The Server closes them all.
	Sockets []*os.File
	// TakeOver makes Run take over the listeners and the connections of the process
	// that runs with the same Config.Listen or UpgradeSocket. Without such a process
	// Run fails.
	TakeOver bool
	// Alone tells that no other goroutine of the process is urgent, so that the loops
	// may keep processors from them for a millisecond at a time.
	Alone bool
	// Discovered is the last list of backends that discovery stored before this
	// process started; SetDiscovered replaces it. When empty, Config.Backends are used.
	Discovered []string
	// OnSuccessor is called with the process number of a new process that is about to
	// take over, so that the caller can tell the service manager, and with this
	// process's own number if the hand-over fails. May be nil.
	OnSuccessor func(pid int)

	checkHold    time.Duration // how long a backend is first held down; zero means 5 s
	checkLine    time.Duration // how long a connection carries check after check; zero means check.LineLife
	balanceEvery time.Duration // interval of rebalance; zero means the constant balanceEvery
	resolver     *net.Resolver // of the backends' names; nil means net.DefaultResolver
}

// ErrHandedOver is returned by Run once a new process has taken over everything.
var ErrHandedOver = errors.New("handed over to a new process")

// Server is a load balancer. Create one with New and Run it once.
type Server struct {
	log        *slog.Logger
	o          Options
	begun      time.Time
	processors int // number of loops
	loops      []*loop
	inUse      atomic.Int64 // number of loops in use, from the front
	cfg        atomic.Pointer[Config]
	set        atomic.Pointer[settings]
	pool       atomic.Pointer[pool]
	limit      atomic.Int64 // most connections at one time
	limitBy    atomic.Int32 // the limitKind that limit comes from
	access     atomic.Pointer[accessLog]
	slots      slots

	_          cpu.CacheLinePad // separates fields that every loop writes per connection from fields it reads
	active     atomic.Int64     // connections of all listeners
	turn       atomic.Uint64    // where the next choice among equal backends starts
	sourceTurn atomic.Uint64    // which source comes next
	next       atomic.Uint64    // which loop gets the next connection taken over
	heldNow    atomic.Int64
	sources    sources
	_          cpu.CacheLinePad

	reserve       reserve
	handover      handover
	accessDropped atomic.Uint64
	headerWarned  atomic.Int64 // when a bad PROXY header was last logged
	limits        limits

	changing  sync.Mutex // held while listeners are opened and closed; locked before mu
	listening bool       // the loops accept from the listeners; guarded by changing

	mu         sync.Mutex // guards the fields below, and changes of cfg, set and pool
	listeners  []*listener
	accounts   []*account        // of every address that was ever listened on
	upgrades   *net.UnixListener // the upgrade socket that is served; nil without one
	renamed    *net.UnixListener // the one to serve next; nil without one
	files      *files
	backends   []*Backend // those of the pool and the draining ones
	draining   map[*Backend]*time.Timer
	discovered []string
	reloads    [2]uint64 // failed, succeeded
	lastReload time.Time
	state      string // the reason it is not ready; "" when it is ready
	serving    serving
	stopped    bool // its backends are stopped

	names     atomic.Pointer[[]*followed] // changed under mu
	following sync.WaitGroup              // the goroutines of names

	changes chan struct{} // signals a change of a backend
	metrics *metrics
}

// settings is the part of a Config that the data path reads; times in nanoseconds.
type settings struct {
	firstByte, halfClose                      int64
	connectTimeout, hedgeAfter, connectBudget int64
	hold, slowStart                           int64
	maxHeld, maxPerSource                     int64
	proxy                                     string
	proxies                                   []netip.Prefix // whose connections begin with a PROXY header
	proxied                                   []string       // listeners on which they do
	sources                                   []*sockaddr    // of connections to backends; empty means the kernel's choice
}

func settingsOf(c Config) *settings {
	return &settings{
		firstByte: int64(c.FirstByteTimeout), halfClose: int64(c.HalfCloseTimeout),
		connectTimeout: int64(c.ConnectTimeout), hedgeAfter: int64(c.HedgeAfter), connectBudget: int64(c.ConnectBudget),
		hold: int64(c.HoldTimeout), slowStart: int64(c.SlowStart),
		maxHeld: int64(c.MaxHeld), maxPerSource: int64(c.MaxPerSource), proxy: c.ProxyProtocol, proxies: c.proxies(), sources: c.sources(),
	}
}

// New reads the files named by cfg, creates a Server and starts checking its backends.
// It opens no listening socket. The error joins every fault found.
func New(cfg Config, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.balanceEvery = cmp.Or(o.balanceEvery, balanceEvery)
	s := &Server{
		log: o.Log, o: o, begun: time.Now(), processors: max(1, runtime.GOMAXPROCS(0)), draining: map[*Backend]*time.Timer{},
		changes: make(chan struct{}, 1), state: "starting", lastReload: time.Now(),
	}
	s.reserve.s = s
	s.pool.Store(&pool{})
	s.metrics = newMetrics(s)
	f, err := readFiles(cfg)
	if err := errors.Join(cfg.Validate(), err); err != nil {
		return nil, err
	}
	discovered, err := s.usableBackends(cfg.ListenAddresses(), o.Discovered)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discovered = discovered
	s.install(cfg, f)
	return s, nil
}

// Name implements supervise.Component.
func (s *Server) Name() string { return "lb" }

// clock returns the nanoseconds since the server was created.
func (s *Server) clock() int64 { return int64(time.Since(s.begun)) }

func (s *Server) settings() *settings { return s.set.Load() }

// full reports whether the limit of connections is reached.
func (s *Server) full() bool { return s.active.Load() >= s.limit.Load() }

// Run implements supervise.Component: it takes over from a running process or opens
// the listeners, calls ready, and balances until ctx ends and the drain is over. It
// returns ErrHandedOver when a new process has taken over.
func (s *Server) Run(ctx context.Context, ready func()) error {
	defer s.closeSockets()
	defer s.stopBackends()
	if err := s.openAccessLog(); err != nil {
		return err
	}
	defer s.closeAccessLog()
	defer s.stopLoops()
	if err := s.makeLoops(); err != nil {
		return err
	}
	old, err := s.predecessor(ctx)
	if err != nil {
		return err
	}
	defer old.close()
	defer s.closeListeners()
	if err := s.openListeners(old); err != nil {
		return err
	}
	s.awaitFirstVerdicts(ctx)
	s.inUse.Store(1)
	if old != nil { // its whole load arrives at once
		s.inUse.Store(int64(len(s.loops)))
	}
	proxy, err := s.accept()
	if err != nil {
		return err
	}
	if err := s.takeOver(old); err != nil {
		return err
	}
	var watchers sync.WaitGroup
	defer watchers.Wait()
	watching, stopWatching := context.WithCancel(context.Background())
	defer stopWatching()
	watchers.Go(func() { s.watchBackends(watching) })
	watchers.Go(func() { s.rebalance(watching) })
	watchers.Go(func() { s.watchLimits(watching) })
	watchers.Go(func() { s.watchServing(watching) })
	successor, err := s.awaitSuccessor(watching, &watchers)
	if err != nil {
		return err
	}
	s.setState("")
	ready()
	select {
	case <-ctx.Done():
		return s.drain(successor)
	case <-successor:
		return ErrHandedOver
	case err := <-proxyFailure(proxy):
		return fmt.Errorf("accept: %w", err)
	}
}

func proxyFailure(p *tcpproxy.Proxy) <-chan error {
	failed := make(chan error, 1)
	go func() { failed <- p.Wait() }()
	return failed
}

func (s *Server) setState(why string) {
	s.mu.Lock()
	s.state = why
	s.mu.Unlock()
}

// makeLoops creates one loop per processor.
func (s *Server) makeLoops() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.processors {
		l, err := newLoop(s, i)
		if err != nil {
			return fmt.Errorf("make an epoll set: %w", err)
		}
		s.loops = append(s.loops, l)
		s.reserve.missing.Add(acceptBatch)
	}
	return nil
}

// stopLoops ends the loops and with them every remaining connection.
func (s *Server) stopLoops() {
	for _, l := range s.loops {
		if !l.running {
			go l.run()
		}
		l.stop(endDrain)
	}
	s.reserve.close()
}

// openListeners takes the sockets inherited from the old process or the service
// manager, and opens the others. The error joins all failures.
func (s *Server) openListeners(old *predecessor) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	inherited := append(old.sockets(), s.activated()...)
	cfg := s.cfg.Load()
	var errs []error
	var opened []*listener
	for _, address := range cfg.ListenAddresses() {
		var ln inheritedSocket
		at := slices.IndexFunc(inherited, func(l inheritedSocket) bool { return sameListener(address, l.Addr()) && sameFamily(address, l.Addr()) })
		if at < 0 {
			at = slices.IndexFunc(inherited, func(l inheritedSocket) bool { return sameListener(address, l.Addr()) })
		}
		if at >= 0 {
			ln = inherited[at]
			inherited = slices.Delete(inherited, at, at+1)
		} else {
			var err error
			if ln.TCPListener, err = openListener(address, cfg.Freebind, false); err != nil {
				errs = append(errs, listenError(address, err))
				continue
			}
		}
		l, err := newListener(ln.TCPListener, deferAccept(cfg.FirstByteTimeout))
		if err != nil {
			errs = append(errs, listenError(address, err))
			continue
		}
		l.account, l.service = s.accountOf(address), ln.service
		opened = append(opened, l)
	}
	for _, l := range inherited {
		s.log.Warn("inherited socket not used: no --listen has its address", "address", l.Addr().String())
		l.Close()
	}
	s.setListeners(opened)
	for _, l := range s.loops {
		l.listeners = opened // it does not run yet
	}
	return errors.Join(errs...)
}

// inheritedSocket is a listening socket of the process before or of the service manager,
// which keeps its own copy.
type inheritedSocket struct {
	*net.TCPListener
	service bool
}

// activated returns the service manager's sockets as listeners.
func (s *Server) activated() (all []inheritedSocket) {
	for _, f := range s.o.Sockets {
		ln, err := net.FileListener(f)
		f.Close()
		if tcp, ok := ln.(*net.TCPListener); ok {
			all = append(all, inheritedSocket{tcp, true})
			continue
		}
		if ln != nil {
			ln.Close()
		}
		s.log.Warn("socket of the service manager not used: it is not a listening TCP socket", "name", f.Name(), "err", err)
	}
	return all
}

// closeSockets closes the sockets that activated did not reach.
func (s *Server) closeSockets() {
	for _, f := range s.o.Sockets {
		f.Close()
	}
}

// sameListener reports whether a socket is one for the address. A socket for both families
// will do for 0.0.0.0: the service manager opens such ones, and so did an older kthwd.
func sameListener(address string, a net.Addr) bool {
	want, err := listenAddress(address)
	tcp, ok := a.(*net.TCPAddr)
	if err != nil || !ok {
		return false
	}
	got := tcp.AddrPort()
	bothAny := want.Addr().IsUnspecified() && got.Addr().IsUnspecified() && (Network(address) != "tcp6" || sameFamily(address, a))
	return want.Port() == got.Port() && (bothAny || want.Addr().Unmap() == got.Addr().Unmap())
}

// sameFamily reports whether a socket has the family that is written in the address.
func sameFamily(address string, a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return false
	}
	four := tcp.AddrPort().Addr().Unmap().Is4()
	switch Network(address) {
	case "tcp4":
		return four
	case "tcp6":
		return !four
	}
	return true
}

// accept starts tcpproxy with one route per loop. Route names are labels, not
// addresses.
func (s *Server) accept() (*tcpproxy.Proxy, error) {
	byName := map[string]*loop{}
	proxy := &tcpproxy.Proxy{ListenFunc: func(_, name string) (net.Listener, error) { return byName[name], nil }}
	for i, l := range s.loops {
		name := fmt.Sprintf("loop %d", i)
		byName[name], l.running = l, true
		l.post(func() { l.setResting(i >= int(s.inUse.Load())) })
		proxy.AddRoute(name, s)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	err := proxy.Start()
	s.listening = err == nil
	return proxy, err
}

// closeListeners stops all accepting and closes the listeners.
func (s *Server) closeListeners() {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.listening = false
	for _, l := range s.loops {
		if l.running {
			l.call(func() { l.stopAccepting(); l.barred = true }) // before Close, or new clients are not routed
			l.Close()
		}
	}
	for _, ln := range s.listeners {
		ln.close()
	}
}

// HandleConn implements tcpproxy.Target: it returns accepted clients to the loop that
// accepted them.
func (s *Server) HandleConn(c net.Conn) {
	a := c.(*arrivals)
	if a.loop.route(a.clients) {
		return
	}
	for _, c := range a.clients {
		s.refuse(c.pair(), rejectError)
	}
}

// refuse closes a connection that has never belonged to a loop.
func (s *Server) refuse(p *pair, why rejectReason) {
	s.reject(p.listener, why)
	s.sources.leave(p)
	p.listener.active.Add(-1)
	s.active.Add(-1)
	closeFD(p.client.fd)
}

func (s *Server) reject(l *listener, why rejectReason) { l.rejected[why].Add(1) }

// ended counts and logs a pair that has just ended.
func (s *Server) ended(p *pair, why endReason, now int64) {
	s.sources.leave(p)
	lasted := time.Duration(now - p.born)
	p.listener.durations.Observe(lasted.Seconds())
	if p.backend != nil {
		p.backend.closed[why].Add(1)
	}
	if log := s.access.Load(); log != nil {
		log.add(p, why, lasted)
	}
	// Last: without an active connection, the end of each is counted and logged.
	p.listener.active.Add(-1)
	s.active.Add(-1)
}

// sources counts connections per client address, when those are limited.
type sources struct {
	mu sync.Mutex
	n  map[netip.Addr]int64
}

func (s *sources) enter(p *pair, most int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = map[netip.Addr]int64{}
	}
	if s.n[p.peer.Addr()] >= most {
		return false
	}
	s.n[p.peer.Addr()]++
	p.counted = true
	return true
}

func (s *sources) leave(p *pair) {
	if !p.counted {
		return
	}
	p.counted = false
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n[p.peer.Addr()]--; s.n[p.peer.Addr()] <= 0 {
		delete(s.n, p.peer.Addr())
	}
}

// awaitFirstVerdicts waits until each backend has its first verdict, at most for the
// time of a check, so that the first client is balanced on facts.
func (s *Server) awaitFirstVerdicts(ctx context.Context) {
	limit := time.NewTimer(s.cfg.Load().CheckTimeout + 100*time.Millisecond)
	defer limit.Stop()
	for !s.allChecked() {
		select {
		case <-s.changes:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) allChecked() bool {
	if !s.resolved() {
		return false
	}
	for _, b := range s.pool.Load().backends {
		if st := b.status.Load(); st == nil || st.State == check.Unknown {
			return false
		}
	}
	return true
}

// drain stops the server in three steps: status reports the stop for ShutdownDelay,
// then the listeners close, then the remaining connections have DrainTimeout to end.
func (s *Server) drain(successor <-chan struct{}) error {
	cfg := s.cfg.Load()
	s.setState("stopping")
	s.log.Info("draining", "connections", s.active.Load(), "shutdown-delay", cfg.ShutdownDelay, "drain-timeout", cfg.DrainTimeout)
	select {
	case <-time.After(cfg.ShutdownDelay):
	case <-successor:
		return ErrHandedOver
	}
	s.closeListeners()
	over := time.NewTimer(cfg.DrainTimeout)
	defer over.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.active.Load() > 0 || s.handover.now.Load() {
		select {
		case <-over.C:
			s.log.Warn("drain time is over: closing the connections that are left", "connections", s.active.Load())
			return nil
		case <-successor:
			return ErrHandedOver
		case <-tick.C:
		}
	}
	return nil
}

// Alive returns nil once every running loop has completed a turn since the call. It
// blocks until then or until ctx ends. A loop that completes no turn serves nobody.
func (s *Server) Alive(ctx context.Context) error {
	s.mu.Lock()
	loops := s.loops
	s.mu.Unlock()
	turned := make(chan struct{}, len(loops))
	waiting := 0
	for _, l := range loops {
		if l.post(func() { turned <- struct{}{} }) {
			waiting++
		}
	}
	for ; waiting > 0; waiting-- {
		select {
		case <-turned:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d loops do not respond: %w", waiting, len(loops), ctx.Err())
		}
	}
	return nil
}
