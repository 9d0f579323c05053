package lb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/harness"
)

// patience limits every wait of these tests; none waits that long when it passes.
const patience = time.Minute

func TestMain(m *testing.M) {
	if child, ok := children[os.Getenv("LB_TEST_CHILD")]; ok {
		child()
		return
	}
	os.Exit(m.Run())
}

// children are the programs that this binary runs as another process of a test.
var children = map[string]func(){}

// eventually waits until ok returns nil.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	harness.WaitFor(t, what, patience, ok)
}

// equal returns an error unless got is want, for eventually.
func equal[T comparable](name string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s: got %v, want %v", name, got, want)
	}
	return nil
}

// receive waits for a value from a channel.
func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing came", what)
		panic("unreachable")
	}
}

// watchLeaks fails the test when it leaves a goroutine or a descriptor behind. Call it
// before registering the clean-up of anything else.
func watchLeaks(t *testing.T) {
	if _, watched := leaksWatched.LoadOrStore(t, true); watched {
		return
	}
	fds, all := descriptorsOpen(), goroutines()
	t.Cleanup(func() {
		leaksWatched.Delete(t)
		if t.Failed() {
			return // the test may have ended anywhere
		}
		eventuallyClean(t, fds, all)
	})
}

var leaksWatched sync.Map

func eventuallyClean(t *testing.T, fdsBefore, goroutinesBefore map[string]string) {
	deadline := time.Now().Add(patience)
	for {
		fds, own := descriptorsOpen(), ownGoroutines()
		maps.DeleteFunc(fds, func(fd, _ string) bool { return fdsBefore[fd] != "" })
		maps.DeleteFunc(own, func(id, _ string) bool { return goroutinesBefore[id] != "" })
		switch {
		case len(own) == 0 && len(fds) == 0:
			return
		case time.Now().After(deadline):
			t.Errorf("left behind: descriptors %v, goroutines %v", fds, own)
			return
		}
		pause(time.Millisecond)
	}
}

// descriptorsOpen returns the open descriptors and their targets, without those of Go's
// poller.
func descriptorsOpen() map[string]string {
	all := map[string]string{}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, n := range names {
		to, err := os.Readlink("/proc/self/fd/" + n.Name())
		if err == nil && !strings.HasPrefix(to, "/proc/") {
			all[n.Name()] = to
		}
	}
	return all
}

// goroutines returns the stacks of all goroutines.
func goroutines() map[string]string {
	buf := make([]byte, 4<<20)
	all := map[string]string{}
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		id, _, _ := strings.Cut(g, " [")
		all[id] = g
	}
	return all
}

// ownGoroutines returns the stacks of the goroutines started by the package.
func ownGoroutines() map[string]string {
	all := goroutines()
	maps.DeleteFunc(all, func(_, g string) bool {
		return !strings.Contains(g, "kthwd/lb") || strings.Contains(g, "testing.(*T).Run") || strings.Contains(g, "lb.goroutines(")
	})
	return all
}

// pause lets time pass, where inactivity itself is tested.
func pause(d time.Duration) { <-time.After(d) }

// rig is a running Server.
type rig struct {
	*Server
	t     *testing.T
	addr  string // its first listening address
	log   *harness.Log
	stop  context.CancelFunc // cancels its context
	ended chan error         // receives the error of Run, once
}

// testConfig returns a configuration with short times and without checks.
func testConfig(backends ...string) Config {
	c := Default()
	c.Backends, c.Check, c.SlowStart = backends, CheckNone, 0
	c.CheckInterval, c.CheckTimeout = 50*time.Millisecond, 500*time.Millisecond
	c.DrainTimeout = 200 * time.Millisecond
	return c
}

// socket returns a listening socket and its address.
func socket(t *testing.T, address string) (*os.File, string) {
	t.Helper()
	ln, err := openListener(address, false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	return f, ln.Addr().String()
}

// run starts a server for cfg, on a free port of 127.0.0.1 unless cfg names
// others or o takes over, and waits until it is ready.
func run(t *testing.T, cfg Config, o Options) *rig {
	t.Helper()
	r := begin(t, cfg, o)
	r.awaitReady()
	return r
}

// begin is run without waiting.
func begin(t *testing.T, cfg Config, o Options) *rig {
	t.Helper()
	watchLeaks(t)
	if len(cfg.Listen) == 2 && cfg.Listen[0] == ":6443" {
		f, addr := socket(t, "127.0.0.1:0")
		o.Sockets, cfg.Listen = append(o.Sockets, f), []string{addr}
	}
	o.checkLine = cmp.Or(o.checkLine, 500*time.Millisecond) // a listener that refuses shows on a new connection only
	r := &rig{t: t, addr: cfg.Listen[0], log: &harness.Log{}, ended: make(chan error, 1)}
	o.Log = r.log.Logger(slog.LevelDebug)
	s, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = s
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		r.ended <- s.Run(ctx, func() { r.log.Write([]byte("READY\n")) })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-returned:
		case <-time.After(patience):
			t.Errorf("Run did not return: %v", ownGoroutines())
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", r.addr, r.log)
		}
	})
	return r
}

func (r *rig) awaitReady() {
	r.t.Helper()
	eventually(r.t, "ready", func() error {
		if !strings.Contains(r.log.String(), "READY\n") {
			select {
			case err := <-r.ended:
				r.t.Fatalf("Run: %v\n%s", err, r.log)
			default:
			}
			return errors.New(r.Status().Reason)
		}
		return nil
	})
}

// noDefer makes clients be accepted before they have sent data.
func (r *rig) noDefer() *rig {
	for _, l := range r.listeners {
		if errno := setInt(l.fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 0); errno != 0 {
			r.t.Fatal(errno)
		}
	}
	return r
}

// empty waits until the server and all its counters have no connection.
func (r *rig) empty() {
	r.t.Helper()
	eventually(r.t, "no connection left", func() error {
		errs := []error{equal("connections", r.active.Load(), 0), equal("held", r.heldNow.Load(), 0)}
		for _, l := range r.listeners {
			errs = append(errs, equal("at "+l.address, l.active.Load(), 0))
		}
		for _, b := range r.allBackends() {
			errs = append(errs, equal("with "+b.name, b.active.Load(), 0), equal("to "+b.name, b.connecting.Load(), 0))
		}
		for _, l := range r.loops {
			errs = append(errs, equal("of a loop", l.count.Load(), 0))
		}
		r.sources.mu.Lock()
		defer r.sources.mu.Unlock()
		return errors.Join(append(errs, equal("sources", len(r.sources.n), 0))...)
	})
}

// endDrains ends the drain time of all removed backends.
func (r *rig) endDrains() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, timer := range r.draining {
		timer.Reset(0)
	}
}

func (r *rig) allBackends() []*Backend {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.backends)
}

func (r *rig) backend(addr string) *Backend {
	r.t.Helper()
	for _, b := range r.allBackends() {
		if b.name == addr {
			return b
		}
	}
	r.t.Fatalf("no backend %s", addr)
	return nil
}

// dial connects to a server as a client.
func (r *rig) dial() *net.TCPConn { r.t.Helper(); return dial(r.t, r.addr) }

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(3 * patience))
	return c.(*net.TCPConn)
}

// peer is a TCP server without TLS, whose connections a test reads and writes.
type peer struct {
	t    *testing.T
	addr string
	ln   net.Listener

	mu     sync.Mutex
	named  map[uint64]chan *net.TCPConn
	all    []net.Conn
	count  atomic.Int64     // connections that were accepted
	handle func(c net.Conn) // serves connections without a name
}

// newPeer starts a peer. Each connection starts with 8 bytes that name it; see pairUp.
func newPeer(t *testing.T) *peer { return newPeerAt(t, "127.0.0.1:0", nil) }

// newPeerAt is newPeer at an address, with handle serving the connections unless nil.
func newPeerAt(t *testing.T, addr string, handle func(net.Conn)) *peer {
	t.Helper()
	watchLeaks(t)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, addr: ln.Addr().String(), ln: ln, named: map[uint64]chan *net.TCPConn{}, handle: handle}
	var all sync.WaitGroup
	accepting := make(chan struct{}) // or the search for leaks may find it as a new goroutine
	all.Go(func() {
		close(accepting)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.count.Add(1)
			c.SetDeadline(time.Now().Add(3 * patience))
			all.Go(func() { p.serve(c.(*net.TCPConn)) })
		}
	})
	<-accepting
	t.Cleanup(func() { ln.Close(); p.closeAll(); all.Wait() })
	return p
}

func (p *peer) serve(c *net.TCPConn) {
	if p.handle != nil {
		defer c.Close()
		p.handle(c)
		return
	}
	var name [8]byte
	if _, err := io.ReadFull(c, name[:]); err != nil {
		c.Close()
		return
	}
	c.SetDeadline(time.Now().Add(3 * patience))
	p.mu.Lock()
	p.all = append(p.all, c)
	p.mu.Unlock()
	p.waiting(binary.BigEndian.Uint64(name[:])) <- c
}

func (p *peer) waiting(name uint64) chan *net.TCPConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.named[name] == nil {
		p.named[name] = make(chan *net.TCPConn, 1)
	}
	return p.named[name]
}

var lastName atomic.Uint64

// pairUp connects through r to one of the peers, and returns the two outer ends.
func (r *rig) pairUp(peers ...*peer) (client, server *net.TCPConn, at *peer) {
	r.t.Helper()
	client = r.dial()
	server, at = introduce(r.t, client, peers...)
	return client, server, at
}

// introduce sends a name and waits for it to arrive at a peer.
func introduce(t *testing.T, client *net.TCPConn, peers ...*peer) (*net.TCPConn, *peer) {
	t.Helper()
	name := lastName.Add(1)
	if _, err := client.Write(binary.BigEndian.AppendUint64(nil, name)); err != nil {
		t.Fatal(err)
	}
	type arrival struct {
		c *net.TCPConn
		p *peer
	}
	found := make(chan arrival, len(peers))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, p := range peers {
		go func() {
			select {
			case c := <-p.waiting(name):
				found <- arrival{c, p}
			case <-ctx.Done():
			}
		}()
	}
	a := receive(t, "a connection at a backend", found)
	t.Cleanup(func() { a.c.Close() })
	return a.c, a.p
}

// parentsLife returns a context that ends with the parent process.
func parentsLife() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	return ctx
}

// blackHole returns the address of a server with a full queue, which answers no SYN.
func blackHole(t *testing.T) string {
	t.Helper()
	return blackHoleAt(t, "127.0.0.1:0")
}

func blackHoleAt(t *testing.T, address string) string {
	t.Helper()
	watchLeaks(t)
	ln, err := net.Listen("tcp", address)
	must(t, err)
	f, err := ln.(*net.TCPListener).File()
	must(t, err, ln.Close())
	t.Cleanup(func() { f.Close() })
	must(t, unix.Listen(int(f.Fd()), 0))
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
	if at.Addr().Unmap().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().Unmap().As4()}
	}
	for range 4 { // more than its queue holds
		c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		must(t, err)
		t.Cleanup(func() { unix.Close(c) })
		if err := unix.Connect(c, to); err != nil && err != unix.EINPROGRESS {
			t.Fatal(err)
		}
	}
	return at.String()
}

// stream returns endless bytes that depend on a seed.
func stream(seed uint64) *rand.ChaCha8 {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	return rand.NewChaCha8(s)
}

// sendStream writes the first n bytes of a stream.
func sendStream(w io.Writer, seed uint64, n int) error {
	_, err := io.CopyN(w, stream(seed), int64(n))
	return err
}

// streamChecker compares the bytes written to it with a stream.
type streamChecker struct {
	want io.Reader
	at   int
	buf  []byte
}

func newStreamChecker(seed uint64) *streamChecker { return &streamChecker{want: stream(seed)} }

func (c *streamChecker) Write(p []byte) (int, error) {
	if len(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	want := c.buf[:len(p)]
	io.ReadFull(c.want, want)
	if !bytes.Equal(p, want) {
		for i := range p {
			if p[i] != want[i] {
				return i, fmt.Errorf("byte %d is another one", c.at+i)
			}
		}
	}
	c.at += len(p)
	return len(p), nil
}

// expectStream reads n bytes and compares them with a stream.
func expectStream(r io.Reader, seed uint64, n int) error {
	c := newStreamChecker(seed)
	if _, err := io.CopyBuffer(c, io.LimitReader(onlyReader{r}, int64(n)), make([]byte, 64<<10)); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", c.at, n, err)
	}
	if c.at != n {
		return fmt.Errorf("end after %d of %d bytes", c.at, n)
	}
	return nil
}

// onlyReader hides WriteTo.
type onlyReader struct{ io.Reader }

// expectEOF expects an orderly end.
func expectEOF(r io.Reader) error {
	var b [1]byte
	if n, err := r.Read(b[:]); n != 0 || !errors.Is(err, io.EOF) {
		return errors.Join(fmt.Errorf("got %d bytes, want EOF", n), err)
	}
	return nil
}

// expectReset expects a reset.
func expectReset(r io.Reader) error {
	var b [1]byte
	if n, err := r.Read(b[:]); n != 0 || !errors.Is(err, unix.ECONNRESET) {
		return errors.Join(fmt.Errorf("got %d bytes, want a reset", n), err)
	}
	return nil
}

// say writes a text and expects it at the other end.
func say(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	hear(t, to, text)
}

func hear(t *testing.T, c io.Reader, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("heard %q and %v, want %q", got[:n], err, text)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// together runs all concurrently and fails with their errors.
func together(t *testing.T, all ...func() error) {
	t.Helper()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, f := range all {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	must(t, errs...)
}

// unused returns an address of 127.0.0.1 without a listener, reserved while the test
// runs.
func unused(t *testing.T) string {
	t.Helper()
	watchLeaks(t)
	fd := boundTo(t, "127.0.0.1:0")
	sa, err := unix.Getsockname(fd)
	must(t, err)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port)).String()
}

// boundTo returns a socket bound to an address that does not listen.
func boundTo(t *testing.T, addr string) int {
	t.Helper()
	a := netip.MustParseAddrPort(addr)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}))
	return fd
}
