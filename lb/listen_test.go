package lb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/harness"
)

// Clients beyond the limit wait, and are served once there is room.
func TestMaxConnections(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.MaxConnections = 3
	r := run(t, cfg, Options{})
	var served [][2]*net.TCPConn
	for range 3 {
		client, server, _ := r.pairUp(p)
		served = append(served, [2]*net.TCPConn{client, server})
	}
	var waiting []*net.TCPConn
	for range 3 {
		c := r.dial()
		must(t, write(c, "\x00\x00\x00\x00\x00\x00\x00\x00"))
		waiting = append(waiting, c)
	}
	eventually(t, "it is noticed", func() error {
		if r.listeners[0].errors[acceptLimit].Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	must(t, equal("connections", r.active.Load(), 3))
	for i, c := range served {
		c[0].Close()
		c[1].Close()
		s := receive(t, "one that has waited", p.waiting(0))
		must(t, write(s, "now"))
		if i == 2 {
			for _, w := range waiting {
				hear(t, w, "now")
			}
		}
	}
	if n := r.active.Load(); n > 3 {
		t.Errorf("%d connections", n)
	}
	for _, c := range waiting {
		c.Close()
	}
	p.closeAll()
	r.empty()
}

func TestMaxPerSource(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.MaxPerSource = 2
	r := run(t, cfg, Options{})
	one, oneServer, _ := r.pairUp(p)
	r.pairUp(p)
	c := r.dial()
	must(t, write(c, "x"), expectGone(c))
	must(t, equal("per_source", r.listeners[0].rejected[rejectPerSource].Load(), 1))

	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	other, err := d.Dial("tcp", r.addr)
	must(t, err)
	defer other.Close()
	introduce(t, other.(*net.TCPConn), p)

	one.Close()
	oneServer.Close()
	eventually(t, "there is room again", func() error { return equal("connections", r.active.Load(), 2) })
	r.pairUp(p)

	cfg = *r.cfg.Load()
	cfg.MaxPerSource = 0 // connections counted before must still be uncounted
	must(t, r.Reload(cfg))
	for range 5 {
		r.pairUp(p)
	}
}

func init() { children["serve"] = childServes }

// childServes runs a balancer in its own process.
func childServes() {
	cfg := testConfig(os.Getenv("LB_TEST_BACKEND"))
	cfg.Listen = []string{os.Getenv("LB_TEST_LISTEN")}
	s, err := New(cfg, Options{Sockets: []*os.File{os.NewFile(3, "socket")}})
	if err != nil {
		fmt.Println("New:", err)
		os.Exit(1)
	}
	ctx := parentsLife()
	fmt.Println("Run:", s.Run(ctx, func() { fmt.Println("READY") }))
}

// serveApart starts a balancer in its own process, and waits until it is ready. ended
// receives the result of the process; a reader must send it back.
func serveApart(t *testing.T, backend string) (cmd *exec.Cmd, addr string, out *harness.Log, ended chan error) {
	t.Helper()
	f, addr := socket(t, "127.0.0.1:0")
	exe, err := os.Executable()
	must(t, err)
	out = &harness.Log{}
	cmd = exec.Command(exe)
	cmd.Env = append(os.Environ(), "LB_TEST_CHILD=serve", "LB_TEST_BACKEND="+backend, "LB_TEST_LISTEN="+addr)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	must(t, err, cmd.Start())
	f.Close()
	ended = make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { in.Close(); <-ended })
	eventually(t, "the process is ready", func() error {
		if !strings.Contains(out.String(), "READY") {
			return fmt.Errorf("it said %q", out)
		}
		return nil
	})
	return cmd, addr, out, ended
}

// A process without free descriptors waits for some, and serves again soon after.
func TestNoDescriptors(t *testing.T) {
	p := newPeerAt(t, "127.0.0.1:0", answer)
	cmd, addr, out, ended := serveApart(t, p.addr)
	must(t, ask(addr))
	limit := unix.Rlimit{Cur: 60, Max: 60}
	must(t, unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil))

	var clients []net.Conn
	for range 100 {
		c := dial(t, addr)
		must(t, write(c, "question"))
		clients = append(clients, c)
	}
	answered := make([]bool, len(clients))
	served := func() (n int) {
		var wg sync.WaitGroup
		for i, c := range clients {
			wg.Go(func() {
				if !answered[i] {
					c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
					var b [6]byte
					_, err := io.ReadFull(c, b[:])
					answered[i] = err == nil
				}
			})
		}
		wg.Wait()
		for _, a := range answered {
			if a {
				n++
			}
		}
		return n
	}
	first := 0
	eventually(t, "some clients are answered", func() error {
		if first = served(); first == 0 {
			return errors.New("none is")
		}
		return nil
	})
	t.Logf("%d of %d clients were answered at first", first, len(clients))
	if first > 28 {
		t.Errorf("%d clients were answered with 60 descriptors", first)
	}
	busy, loop := cpuTime(t, cmd.Process.Pid), 500*time.Millisecond
	harness.Spin(t, loop) // a loop that polls would have as much of this machine
	busy = cpuTime(t, cmd.Process.Pid) - busy
	if busy > loop*3/10 {
		t.Errorf("it was busy for %v, and a busy loop beside it for %v, while it had nothing to do but wait", busy, loop)
	}
	// Each client that leaves makes room for another: in the end all are served.
	eventually(t, "the others are answered", func() error {
		for i, c := range clients {
			if answered[i] {
				c.Close()
			}
		}
		if n := served(); n < len(clients) {
			return fmt.Errorf("%d of %d", n, len(clients))
		}
		return nil
	})
	for _, c := range clients {
		c.Close()
	}
	must(t, ask(addr))
	select {
	case err := <-ended:
		ended <- err
		t.Fatalf("the process has ended: %v\n%s", err, out)
	default:
	}
}

// cpuTime returns the CPU time used by a process.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	_, after, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(after)
	var user, system int
	fmt.Sscan(f[11], &user)
	fmt.Sscan(f[12], &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

func TestAcceptErrors(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		kind  acceptError
		wait  bool
	}{
		{unix.EMFILE, acceptEMFILE, true},
		{unix.ENFILE, acceptENFILE, true},
		{unix.ENOBUFS, acceptENOBUFS, true},
		{unix.ENOMEM, acceptENOBUFS, true},
		{unix.ECONNABORTED, acceptOther, false},
		{unix.EINTR, acceptOther, false},
		{unix.EPROTO, acceptOther, false},
		{unix.EBADF, acceptOther, true},
	} {
		if kind, wait := acceptErrorOf(tt.errno); kind != tt.kind || wait != tt.wait {
			t.Errorf("%v: got %v, %v; want %v, %v", tt.errno, acceptErrorNames[kind], wait, acceptErrorNames[tt.kind], tt.wait)
		}
	}
}

func TestSameListener(t *testing.T) {
	for _, tt := range []struct {
		address, bound string
		want           bool
	}{
		{":6443", "[::]:6443", true},
		{":6443", "0.0.0.0:6443", true},
		{"0.0.0.0:6443", "[::]:6443", true},
		{"[::]:6443", "[::]:6443", true},
		{"[::]:6443", "0.0.0.0:6443", false},
		{"10.0.0.1:6443", "10.0.0.1:6443", true},
		{"10.0.0.1:6443", "[::ffff:10.0.0.1]:6443", true},
		{"localhost:6443", "127.0.0.1:6443", true},
		{"[::1]:6443", "[::1]:6443", true},
		{":6443", "10.0.0.1:6443", false},
		{"10.0.0.1:6443", "0.0.0.0:6443", false},
		{"10.0.0.1:6443", "10.0.0.1:443", false},
		{"10.0.0.1:6443", "10.0.0.2:6443", false},
		{"nonsense", "10.0.0.2:6443", false},
	} {
		if got := sameListener(tt.address, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.bound))); got != tt.want {
			t.Errorf("%s and %s: got %v", tt.address, tt.bound, got)
		}
	}
}

// The family that is written is the family that is listened on: 0.0.0.0 and [::] may have
// the same port, and a new process takes over each of them.
func TestListenFamilies(t *testing.T) {
	p := newPeer(t)
	var four, six *os.File
	var at string
	eventually(t, "a port that both families have", func() error {
		f, addr := socket(t, "0.0.0.0:0")
		ln, err := openListener("[::]:"+addr[strings.LastIndex(addr, ":")+1:], false, false)
		if err != nil {
			f.Close()
			return err
		}
		defer ln.Close()
		six, err = ln.File()
		four, at = f, addr
		return err
	})
	port := at[strings.LastIndex(at, ":"):]
	cfg := testConfig(p.addr)
	cfg.Listen = []string{"0.0.0.0" + port, "[::]" + port}
	r := run(t, cfg, Options{Sockets: []*os.File{six, four}})
	for range 2 {
		for i, to := range []string{"127.0.0.1" + port, "[::1]" + port} {
			c := dial(t, to)
			server, _ := introduce(t, c, p)
			say(t, c, server, "hello")
			must(t, equal("accepted at "+r.listeners[i].address, r.listeners[i].accepted.Load(), 1))
			c.Close()
			server.Close()
		}
		r.empty()
		next := r.successor(nil)
		next.awaitReady()
		r.handedOver()
		r = next
	}
	for _, tt := range []struct{ listen, served, refused string }{
		{"0.0.0.0", "127.0.0.1", "[::1]"},
		{"[::]", "[::1]", "127.0.0.1"},
	} {
		ln, err := openListener(tt.listen+":0", false, false)
		must(t, err)
		_, number, _ := net.SplitHostPort(ln.Addr().String())
		c, err := net.Dial("tcp", tt.served+":"+number)
		must(t, err)
		c.Close()
		ln.Close()
		own := Default()
		own.Listen, own.Backends = []string{tt.listen + ":" + number}, []string{tt.refused + ":" + number}
		must(t, own.Validate()) // a backend of the other family is not this balancer
		own.Backends = []string{tt.served + ":" + number}
		if own.Validate() == nil {
			t.Errorf("%s: itself is accepted as a backend", tt.listen)
		}
	}
}

// A socket from the service manager is used, or closed and named in the log.
func TestInheritedSockets(t *testing.T) {
	p := newPeer(t)
	used, addr := socket(t, "127.0.0.1:0")
	other, otherAddr := socket(t, "127.0.0.1:0")
	noSocket, err := os.Open("/dev/null")
	must(t, err)
	cfg := testConfig(p.addr)
	cfg.Listen = []string{addr}
	r := run(t, cfg, Options{Sockets: []*os.File{used, other, noSocket}})
	client, server, _ := r.pairUp(p)
	say(t, client, server, "hello")
	for _, text := range []string{"inherited socket not used", otherAddr, "/dev/null"} {
		if !strings.Contains(r.log.String(), text) {
			t.Errorf("the log lacks %q", text)
		}
	}
}

// A socket of Multipath TCP lacks some of the options; clients come with and without it.
func TestInheritedMultipathSocket(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		t.Skipf("this kernel has no Multipath TCP: %v", err)
	}
	f := os.NewFile(uintptr(fd), "multipath")
	must(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(t, unix.Listen(fd, 16))
	bound, err := unix.Getsockname(fd)
	must(t, err)
	p := newPeerAt(t, "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(c, c) })
	cfg := testConfig(p.addr)
	cfg.Listen = []string{fmt.Sprintf("127.0.0.1:%d", bound.(*unix.SockaddrInet4).Port)}
	r := run(t, cfg, Options{Sockets: []*os.File{f}})
	for _, multipath := range []bool{false, true} {
		d := net.Dialer{Timeout: patience}
		d.SetMultipathTCP(multipath)
		client, err := d.Dial("tcp", r.addr)
		must(t, err)
		defer client.Close()
		must(t, client.SetDeadline(time.Now().Add(patience)))
		_, err = io.WriteString(client, "hello")
		must(t, err)
		echo := make([]byte, len("hello"))
		if _, err := io.ReadFull(client, echo); err != nil || string(echo) != "hello" {
			t.Errorf("multipath %v: the echo is %q, %v", multipath, echo, err)
		}
	}
}

func TestPortInUse(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.Listen = []string{newPeer(t).addr, newPeer(t).addr}
	r := begin(t, cfg, Options{})
	err := receive(t, "the end of Run", r.ended)
	for _, l := range cfg.Listen {
		if err == nil || !strings.Contains(err.Error(), "listen on "+l+": address already in use") {
			t.Errorf("%s: got %v", l, err)
		}
	}
}

func TestDrain(t *testing.T) {
	const short = 100 * time.Millisecond
	for _, tt := range []struct {
		name         string
		delay, drain time.Duration // one in which the test acts lasts until it has acted
		ends         error
		do           func(t *testing.T, r *rig, p *peer)
	}{
		{"nothing to drain", short, time.Hour, nil, func(t *testing.T, r *rig, _ *peer) { r.stop() }},
		{"first it announces the stop", time.Hour, short, ErrHandedOver, func(t *testing.T, r *rig, p *peer) {
			r.stop()
			eventually(t, "not ready", func() error { return equal("state", r.Status().Reason, "stopping") })
			client, server, _ := r.pairUp(p) // within ShutdownDelay
			say(t, client, server, "still accepted")
			must(t, client.Close(), expectEOF(server), server.Close())
			r.successor(func(c *Config) { c.ShutdownDelay = 0 }).awaitReady() // ends the delay
		}},
		{"connections go on for a while", short, time.Hour, nil, func(t *testing.T, r *rig, p *peer) {
			client, server, _ := r.pairUp(p)
			r.stop()
			eventually(t, "it listens no more", func() error {
				c, err := net.Dial("tcp", r.addr)
				if err != nil {
					return nil
				}
				c.Close()
				return errors.New("it does")
			})
			say(t, client, server, "goes on")
			must(t, client.Close(), expectEOF(server), server.Close())
		}},
		{"then they are reset", short, short, nil, func(t *testing.T, r *rig, p *peer) {
			client, server, _ := r.pairUp(p)
			r.stop()
			must(t, expectReset(client), expectReset(server))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t)
			cfg := testConfig(p.addr)
			cfg.ShutdownDelay, cfg.DrainTimeout = tt.delay, tt.drain
			r := run(t, cfg, Options{})
			tt.do(t, r, p)
			if err := receive(t, "the end of Run", r.ended); !errors.Is(err, tt.ends) {
				t.Errorf("Run: got %v, want %v", err, tt.ends)
			}
			r.empty()
		})
	}
}

// Clients arrive while the server ends: every one is closed.
func TestStopUnderLoad(t *testing.T) {
	p := newPeerAt(t, "127.0.0.1:0", answer)
	for range 20 {
		cfg := testConfig(p.addr)
		cfg.DrainTimeout = 0
		r := run(t, cfg, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for ctx.Err() == nil {
					ask(r.addr)
				}
			})
		}
		eventually(t, "clients have come", func() error {
			if r.listeners[0].accepted.Load() < 50 {
				return errors.New("not yet")
			}
			return nil
		})
		r.stop()
		must(t, receive(t, "the end of Run", r.ended))
		cancel()
		all.Wait()
		r.empty()
	}
}
