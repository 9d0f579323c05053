// Package lb is a TCP load balancer for kube-apiservers.
//
//	s, err := lb.New(cfg, lb.Options{Log: log})
//	…
//	err = s.Run(ctx, ready)
//
// It balances connections, not requests: what is inside a connection is TLS
// between a client and an API server, and stays theirs. So it can do three things
// well: send a new connection where it will be answered, cut one that never will
// be, and leave all others alone, for hours, through changes of its configuration
// and of its own binary.
//
// A goroutine for each backend checks it (package check); its verdict is one
// number, the tier, in the Backend that the data path reads (choose.go).
// Connections are accepted through tcpproxy (listen.go), and handed to one of a few
// loops (loop.go), each one goroutine around an epoll set, which connects to a
// backend (connect.go) and moves the bytes (pair.go, pipe.go). A new process takes
// the listeners and the live connections over from an old one (upgrade.go).
//
// The package links neither Kubernetes nor etcd. It does not look into TLS, it
// does not retry a request that was sent, and it does not move connections that
// are healthy.
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

// Options are what the caller of New provides. The zero value logs nothing.
type Options struct {
	Log *slog.Logger
	// Sockets are listening sockets that the service manager has opened. Those
	// whose address is one of Config.Listen are used, and all are closed.
	Sockets []*os.File
	// TakeOver has Run take the listeners and the connections of the process that
	// runs with the same Config.Listen, or UpgradeSocket. Without one it fails.
	TakeOver bool
	// Alone says that nothing else in the process is in a hurry, so that the loops may
	// keep processors from other goroutines, for a millisecond at a time.
	Alone bool
	// Discovered is the last list of backends that discovery knew before this
	// process; SetDiscovered replaces it. Empty means that Config.Backends are used.
	Discovered []string
	// OnSuccessor is called when a new process is about to take over, with its
	// process number, so that the service manager can be told; and with this
	// process' own, should that break off. May be nil.
	OnSuccessor func(pid int)

	balanceEvery time.Duration // how often rebalance looks; balanceEvery for 0
}

// ErrHandedOver is returned by Run when a new process has taken everything over.
var ErrHandedOver = errors.New("handed over to a new process")

// Server is a load balancer. Make one with New and Run it once.
type Server struct {
	log        *slog.Logger
	o          Options
	begun      time.Time
	processors int // each has a loop
	loops      []*loop
	inUse      atomic.Int64 // the first so many of them
	listeners  []*listener
	cfg        atomic.Pointer[Config]
	set        atomic.Pointer[settings]
	pool       atomic.Pointer[pool]
	limit      atomic.Int64 // of connections
	access     atomic.Pointer[accessLog]
	slots      slots

	_       cpu.CacheLinePad // what all loops write for each connection, away from what they read
	active  atomic.Int64     // connections, of all listeners
	turn    atomic.Uint64    // where the next choice among equals begins
	next    atomic.Uint64    // which loop gets the next connection of another process
	heldNow atomic.Int64
	sources sources
	_       cpu.CacheLinePad

	reserve       reserve
	handover      handover
	accessDropped atomic.Uint64

	mu         sync.Mutex // guards what follows, and changes of the above
	files      *files
	backends   []*Backend // of the pool, and those that drain
	draining   map[*Backend]*time.Timer
	discovered []string
	reloads    [2]uint64 // that failed, and that did not
	lastReload time.Time
	state      string // why it is not ready; "" when it is

	changes chan struct{} // something about a backend has changed
	metrics *metrics
}

// settings are what the data path reads of a Config, in nanoseconds.
type settings struct {
	firstByte, halfClose                      int64
	connectTimeout, hedgeAfter, connectBudget int64
	hold, slowStart                           int64
	maxHeld, maxPerSource                     int64
	proxy                                     string
}

func settingsOf(c Config) *settings {
	return &settings{
		firstByte: int64(c.FirstByteTimeout), halfClose: int64(c.HalfCloseTimeout),
		connectTimeout: int64(c.ConnectTimeout), hedgeAfter: int64(c.HedgeAfter), connectBudget: int64(c.ConnectBudget),
		hold: int64(c.HoldTimeout), slowStart: int64(c.SlowStart),
		maxHeld: int64(c.MaxHeld), maxPerSource: int64(c.MaxPerSource), proxy: c.ProxyProtocol,
	}
}

// New reads the files that cfg names, makes a Server, and begins to check its
// backends. It opens no listening socket. The error joins all that is wrong.
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
	discovered, err := s.usable(cfg.Listen, o.Discovered)
	if err != nil {
		return nil, err
	}
	s.discovered = discovered
	s.put(cfg, f)
	return s, nil
}

// Name implements supervise.Component.
func (s *Server) Name() string { return "lb" }

// clock is nanoseconds since the server was made.
func (s *Server) clock() int64 { return int64(time.Since(s.begun)) }

func (s *Server) settings() *settings { return s.set.Load() }

// full tells whether there are as many connections as there may be.
func (s *Server) full() bool { return s.active.Load() >= s.limit.Load() }

// Run implements supervise.Component: it takes over from a running process or
// opens the listeners, calls ready, and balances until ctx ends and the drain is
// over. It returns ErrHandedOver when a new process took over.
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
	s.firstVerdicts(ctx)
	s.inUse.Store(1)
	if old != nil { // what has kept that one busy comes all at once
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
	case err := <-waitFor(proxy):
		return fmt.Errorf("accept: %w", err)
	}
}

func waitFor(p *tcpproxy.Proxy) <-chan error {
	failed := make(chan error, 1)
	go func() { failed <- p.Wait() }()
	return failed
}

func (s *Server) setState(why string) {
	s.mu.Lock()
	s.state = why
	s.mu.Unlock()
}

// makeLoops makes a loop for each processor.
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

// stopLoops ends the loops, and with them every connection that is left.
func (s *Server) stopLoops() {
	for _, l := range s.loops {
		if !l.running {
			go l.run()
		}
		l.stop(endDrain)
	}
	s.reserve.close()
}

// openListeners takes the sockets that exist already, from the old process or
// the service manager, and opens the others. All that fail are reported.
func (s *Server) openListeners(old *predecessor) error {
	inherited := append(old.sockets(), s.activated()...)
	var errs []error
	var opened []*listener
	for i, address := range s.cfg.Load().Listen {
		var ln *net.TCPListener
		at := slices.IndexFunc(inherited, func(l *net.TCPListener) bool { return sameListener(address, l.Addr()) })
		if at >= 0 {
			ln = inherited[at]
			inherited = slices.Delete(inherited, at, at+1)
		} else {
			var err error
			if ln, err = listen(address); err != nil {
				errs = append(errs, listenError(address, err))
				continue
			}
		}
		l, err := newListener(address, i, ln, deferAccept(s.cfg.Load().FirstByteTimeout))
		if err != nil {
			errs = append(errs, listenError(address, err))
			continue
		}
		opened = append(opened, l)
	}
	for _, l := range inherited {
		s.log.Warn("inherited socket not used: no --listen has its address", "address", l.Addr().String())
		l.Close()
	}
	s.mu.Lock()
	s.listeners = opened
	s.mu.Unlock()
	return errors.Join(errs...)
}

// activated makes listeners of what the service manager has passed.
func (s *Server) activated() (all []*net.TCPListener) {
	for _, f := range s.o.Sockets {
		ln, err := net.FileListener(f)
		f.Close()
		if tcp, ok := ln.(*net.TCPListener); ok {
			all = append(all, tcp)
			continue
		}
		if ln != nil {
			ln.Close()
		}
		s.log.Warn("socket of the service manager not used: it is no listening TCP socket", "name", f.Name(), "err", err)
	}
	return all
}

// closeSockets closes what activated has not seen.
func (s *Server) closeSockets() {
	for _, f := range s.o.Sockets {
		f.Close()
	}
}

func sameListener(address string, a net.Addr) bool {
	want, err := listenAddress(address)
	tcp, ok := a.(*net.TCPAddr)
	if err != nil || !ok {
		return false
	}
	got := tcp.AddrPort()
	bothAny := want.Addr().IsUnspecified() && got.Addr().IsUnspecified()
	return want.Port() == got.Port() && (bothAny || want.Addr().Unmap() == got.Addr().Unmap())
}

// accept has tcpproxy accept: from the loops, each with a route of its own. The
// names of the routes are nobody's addresses.
func (s *Server) accept() (*tcpproxy.Proxy, error) {
	byName := map[string]*loop{}
	proxy := &tcpproxy.Proxy{ListenFunc: func(_, name string) (net.Listener, error) { return byName[name], nil }}
	for i, l := range s.loops {
		name := fmt.Sprintf("loop %d", i)
		byName[name], l.running = l, true
		l.post(func() { l.rest(i >= int(s.inUse.Load())) })
		proxy.AddRoute(name, s)
	}
	return proxy, proxy.Start()
}

// closeListeners has nobody accept any more.
func (s *Server) closeListeners() {
	for _, l := range s.loops {
		if l.running {
			l.call(func() { l.unlisten(); l.barred = true }) // before Close, or newcomers are not routed
			l.Close()
		}
	}
	for _, ln := range s.listeners {
		ln.close()
	}
}

// HandleConn implements tcpproxy.Target: it gives what has arrived back to the loop
// that has accepted it.
func (s *Server) HandleConn(c net.Conn) {
	a := c.(*arrivals)
	if a.loop.route(a.clients) {
		return
	}
	for _, c := range a.clients {
		s.refuse(c.pair(), rejectError)
	}
}

// refuse closes a connection that is no loop's, nor ever was.
func (s *Server) refuse(p *pair, why rejectReason) {
	s.reject(p.listener, why)
	s.sources.leave(p)
	p.listener.active.Add(-1)
	s.active.Add(-1)
	closeFD(p.client.fd)
}

func (s *Server) reject(l *listener, why rejectReason) { l.rejected[why].Add(1) }

// ended counts a pair that has just ended.
func (s *Server) ended(p *pair, why endReason, now int64) {
	s.sources.leave(p)
	p.listener.active.Add(-1)
	s.active.Add(-1)
	lasted := time.Duration(now - p.born)
	p.listener.durations.Observe(lasted.Seconds())
	if p.backend != nil {
		p.backend.closed[why].Add(1)
	}
	if log := s.access.Load(); log != nil {
		log.add(p, why, lasted)
	}
}

// sources counts the connections of each client address, where that is limited.
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

// firstVerdicts waits until each backend was checked once, or should have been:
// the first client is to find the balancer knowing.
func (s *Server) firstVerdicts(ctx context.Context) {
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
	for _, b := range s.pool.Load().backends {
		if st := b.status.Load(); st == nil || st.State == check.Unknown {
			return false
		}
	}
	return true
}

// drain is the stop: first others learn that it comes, then no connection is
// accepted any more, then those that are left have a while.
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

// Alive returns nil once each loop has been between two batches of events, or has
// none to run; it blocks until then, or until ctx ends. A loop that balances and
// does not come round is one that serves nobody.
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
			return fmt.Errorf("%d of %d loops do not turn: %w", waiting, len(loops), ctx.Err())
		}
	}
	return nil
}
