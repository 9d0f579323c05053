package lb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/harness"
)

// successor starts a server that takes over from r, once r has the upgrade socket: the
// process before r may still have it.
func (r *rig) successor(change func(*Config)) *rig {
	r.t.Helper()
	r.awaitUpgradable()
	cfg := *r.cfg.Load()
	if change != nil {
		change(&cfg)
	}
	return begin(r.t, cfg, Options{TakeOver: true})
}

// handedOver waits until r has ended with ErrHandedOver.
func (r *rig) handedOver() {
	r.t.Helper()
	if err := receive(r.t, "the end of the old process", r.ended); !errors.Is(err, ErrHandedOver) {
		r.t.Fatalf("Run: got %v, want %v", err, ErrHandedOver)
	}
}

// talk makes both ends of a connection send endless streams to each other until stop is
// called, which returns the number of bytes that arrived.
type talk struct {
	client, server *net.TCPConn
	over           atomic.Bool
	done           chan error
}

func startTalk(client, server *net.TCPConn, seed uint64, chunk int, every time.Duration) *talk {
	k := &talk{client: client, server: server, done: make(chan error, 4)}
	oneWay := func(from, to *net.TCPConn, seed uint64) {
		go func() {
			src, buf := stream(seed), make([]byte, chunk)
			for !k.over.Load() {
				src.Read(buf)
				if _, err := from.Write(buf); err != nil {
					k.done <- err
					return
				}
				if every > 0 {
					pause(every)
				}
			}
			k.done <- from.CloseWrite()
		}()
		go func() {
			c := newStreamChecker(seed)
			n, err := io.CopyBuffer(c, onlyReader{to}, make([]byte, 64<<10))
			if err == nil && n%int64(chunk) != 0 {
				err = fmt.Errorf("the stream ends after %d bytes", n)
			}
			k.done <- err
		}()
	}
	oneWay(client, server, seed)
	oneWay(server, client, seed+1)
	return k
}

func (k *talk) stop(t *testing.T) {
	t.Helper()
	k.over.Store(true)
	for range 4 {
		if err := receive(t, "the end of a stream", k.done); err != nil {
			t.Fatal(err)
		}
	}
}

// Connections in all phases move repeatedly, and lose no byte.
func TestUpgrade(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.MaxPerSource = 1000
	cfg.FirstByteTimeout, cfg.HalfCloseTimeout = time.Hour, time.Hour // none ends by itself
	r := run(t, cfg, Options{}).noDefer()

	var fresh []*net.TCPConn
	for range 5 {
		fresh = append(fresh, r.dial())
	}
	var idle [][2]*net.TCPConn
	for range 150 { // more than a frame holds
		client, server, _ := r.pairUp(p)
		idle = append(idle, [2]*net.TCPConn{client, server})
	}
	var talks []*talk
	for i := range 10 {
		client, server, _ := r.pairUp(p)
		talks = append(talks, startTalk(client, server, uint64(100+2*i), 500+i, 10*time.Millisecond))
	}
	for i := range 3 {
		client, server, _ := r.pairUp(p)
		talks = append(talks, startTalk(client, server, uint64(200+2*i), 300<<10, 50*time.Millisecond))
	}
	halfA, halfB, _ := r.pairUp(p)
	must(t, halfA.CloseWrite(), expectEOF(halfB))
	halfC, halfD, _ := r.pairUp(p)
	must(t, halfD.CloseWrite(), expectEOF(halfC))
	var stuck []*blocked
	for i := range 8 {
		client, server, _ := r.pairUp(p)
		if i%2 == 0 {
			client, server = server, client
		}
		stuck = append(stuck, block(t, client, server, uint64(300+i)))
	}
	eventually(t, "all were accepted", func() error {
		return equal("connections", r.active.Load(), int64(5+150+13+2+8))
	})
	old := r
	for range 3 {
		r = old.successor(nil)
		r.awaitReady()
		old.handedOver()
		old.empty()
		must(t, equal("connections of the new process", r.active.Load(), old.handedOut()),
			equal("at the backend", r.backend(p.addr).active.Load(), 150+13+2+8))
		old = r
		for _, k := range talks { // let them continue for a while
			if len(k.done) > 0 {
				t.Fatal(<-k.done)
			}
		}
		pause(30 * time.Millisecond)
	}
	for _, c := range idle {
		say(t, c[0], c[1], "still there?")
		say(t, c[1], c[0], "yes")
	}
	for _, c := range fresh {
		s, _ := introduce(t, c, p)
		say(t, s, c, "at last")
	}
	say(t, halfB, halfA, "answer")
	must(t, halfB.Close(), expectEOF(halfA))
	say(t, halfC, halfD, "question")
	must(t, halfC.Close(), expectEOF(halfD))
	for _, k := range talks {
		k.stop(t)
	}
	for _, b := range stuck {
		b.release(t)
	}
	client, server, _ := r.pairUp(p)
	say(t, client, server, "a new one")
	client.Close()
	server.Close()
	for _, c := range append(idle, [2]*net.TCPConn{halfA, halfC}) {
		c[0].Close()
		c[1].Close()
	}
	for _, c := range fresh {
		c.Close()
	}
	p.closeAll()
	r.empty()
}

func (r *rig) handedOut() int64 { return int64(r.handover.given.Load()) }

// closeAll closes connections that are no longer needed.
func (p *peer) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.all {
		c.Close()
	}
}

// blocked is a stream whose reader has stopped, so that part of it is in the balancer's
// memory or in a pipe.
type blocked struct {
	from, to *net.TCPConn
	seed     uint64
	sent     int
}

func block(t *testing.T, from, to *net.TCPConn, seed uint64) *blocked {
	t.Helper()
	b := &blocked{from: from, to: to, seed: seed}
	src, buf := stream(seed), make([]byte, 100<<10)
	for {
		src.Read(buf)
		from.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := from.Write(buf)
		b.sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		must(t, err)
	}
	from.SetDeadline(time.Now().Add(3 * patience))
	to.SetDeadline(time.Now().Add(3 * patience))
	return b
}

func (b *blocked) release(t *testing.T) {
	t.Helper()
	must(t, b.from.CloseWrite(), expectStream(b.to, b.seed, b.sent), expectEOF(b.to))
	say(t, b.to, b.from, "that was all")
	must(t, b.to.Close(), expectEOF(b.from))
}

// Many pairs, each with a full pipe: more than one frame can hold.
func TestUpgradeWithFullPipes(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	var stuck []*blocked
	var mu sync.Mutex
	var all []func() error
	for i := range 100 {
		client, server, _ := r.pairUp(p)
		all = append(all, func() error {
			b := block(t, server, client, uint64(i))
			mu.Lock()
			defer mu.Unlock()
			stuck = append(stuck, b)
			return nil
		})
	}
	together(t, all...)
	next := r.successor(nil)
	next.awaitReady()
	r.handedOver()
	for _, b := range stuck {
		b.release(t)
	}
	next.empty()
}

func TestUpgradeWhileConnecting(t *testing.T) {
	p := newPeer(t)
	hole := blackHole(t)
	dead := unused(t)
	for _, tt := range []struct {
		name, backend string
		waits         func(r *rig) int64
	}{
		{"connecting", hole, func(r *rig) int64 { return r.backend(hole).connecting.Load() }},
		{"held", dead, func(r *rig) int64 { return r.heldNow.Load() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(tt.backend)
			cfg.ConnectTimeout, cfg.ConnectBudget, cfg.HoldTimeout = time.Hour, time.Hour, time.Hour // all ten wait together
			r := run(t, cfg, Options{})
			var clients []*net.TCPConn
			for i := range 10 {
				c := r.dial()
				if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(1e6+i))); err != nil {
					t.Fatal(err)
				}
				clients = append(clients, c)
			}
			eventually(t, "they wait", func() error { return equal("waiting", tt.waits(r), 10) })
			next := r.successor(func(c *Config) { c.Backends = []string{p.addr} })
			next.awaitReady()
			r.handedOver()
			r.empty()
			for i, c := range clients {
				s := receive(t, "its connection", p.waiting(uint64(1e6+i)))
				say(t, s, c, "served by the new one")
				s.Close()
				must(t, expectEOF(c), c.Close())
			}
			next.empty()
		})
	}
}

// A new process may die at each step. The old one then continues, and has lost only the
// connections that the new one had acknowledged.
func TestUpgradeBrokenOff(t *testing.T) {
	hello := frame{Kind: "hello", Version: upgradeVersion, PID: 1}
	var acknowledged int
	for _, tt := range []struct {
		name string
		kept int // connections kept of 130; -1 means those not acknowledged
		do   func(t *testing.T, w wire)
	}{
		{"at once", 130, func(t *testing.T, w wire) {}},
		{"garbage", 130, func(t *testing.T, w wire) { w.conn.Write([]byte("GET / HTTP/1.1\r\nHost: here\r\n\r\n")) }},
		{"a huge frame", 130, func(t *testing.T, w wire) { w.conn.Write([]byte{255, 255, 255, 255, 0, 0, 0, 0}) }},
		{"half a frame", 130, func(t *testing.T, w wire) { w.conn.Write([]byte{0, 0, 0, 20, 0, 0, 0, 0, '{'}) }},
		{"no JSON", 130, func(t *testing.T, w wire) { w.conn.Write([]byte{0, 0, 0, 1, 0, 0, 0, 0, '{'}) }},
		{"unexpected descriptors", 130, func(t *testing.T, w wire) {
			must(t, w.send(hello, 0, 1, 2))
			w.receive(patience, "listeners")
		}},
		{"another kind", 130, func(t *testing.T, w wire) { must(t, w.send(frame{Kind: "ack"})) }},
		{"after hello", 130, func(t *testing.T, w wire) { must(t, w.send(hello)) }},
		{"after listeners", 130, func(t *testing.T, w wire) { begun(t, w, hello) }},
		{"after go", 130, func(t *testing.T, w wire) {
			begun(t, w, hello)
			must(t, w.send(frame{Kind: "go"}))
		}},
		{"before ack", 130, func(t *testing.T, w wire) {
			begun(t, w, hello)
			must(t, w.send(frame{Kind: "go"}))
			pairsReceived(t, w)
		}},
		{"in the middle", -1, func(t *testing.T, w wire) {
			begun(t, w, hello)
			must(t, w.send(frame{Kind: "go"}))
			acknowledged = pairsReceived(t, w)
			must(t, w.send(frame{Kind: "ack"}))
			_, fds, err := w.receive(patience, "pairs")
			must(t, err)
			closeAll(fds)
		}},
		{"with half an ack", 130, func(t *testing.T, w wire) {
			begun(t, w, hello)
			must(t, w.send(frame{Kind: "go"}))
			pairsReceived(t, w)
			w.conn.Write([]byte{0, 0, 0, 14})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t)
			cfg := testConfig(p.addr)
			cfg.DrainTimeout = 0
			var told atomic.Int64
			r := run(t, cfg, Options{OnSuccessor: func(pid int) { told.Store(int64(pid)) }})
			var all [][2]*net.TCPConn
			for range 120 {
				client, server, _ := r.pairUp(p)
				all = append(all, [2]*net.TCPConn{client, server})
			}
			var talks []*talk
			for i := range 10 {
				client, server, _ := r.pairUp(p)
				talks = append(talks, startTalk(client, server, uint64(2*i), 10<<10, 10*time.Millisecond))
			}
			conn, err := net.DialUnix("unix", nil, r.upgradeSocket())
			must(t, err)
			acknowledged = 0
			tt.do(t, wire{conn})
			conn.Close()
			eventually(t, "the old process has noticed", func() error {
				if log := r.log.String(); !strings.Contains(log, "did not take over") && !strings.Contains(log, "hand-over failed, continuing") {
					return errors.New("nothing is in its log")
				}
				return nil
			})
			kept := 0
			for _, c := range all {
				c[0].SetDeadline(time.Now().Add(patience))
				if _, err := c[0].Write([]byte("x")); err != nil {
					continue
				}
				var b [1]byte
				if _, err := c[1].Read(b[:]); err == nil {
					kept++
				}
			}
			if tt.kept > 0 {
				must(t, equal("kept", kept, 120))
				for _, k := range talks {
					k.stop(t)
				}
			} else if acknowledged == 0 || kept < 120-acknowledged || kept > 130-acknowledged {
				t.Errorf("%d connections of 120 were kept, when %d of 130 were acknowledged", kept, acknowledged)
			}
			client, server, _ := r.pairUp(p)
			say(t, client, server, "new clients are served")
			eventually(t, "what OnSuccessor was told last", func() error {
				if pid := told.Load(); pid != 0 {
					return equal("process", pid, int64(os.Getpid()))
				}
				return nil
			})
			next := r.successor(nil) // the next attempt succeeds
			next.awaitReady()
			r.handedOver()
			say(t, server, client, "and go on")
			p.closeAll()
		})
	}
}

func begun(t *testing.T, w wire, hello frame) {
	t.Helper()
	must(t, w.send(hello))
	f, fds, err := w.receive(patience, "listeners")
	must(t, err, equal("listeners", len(fds), 1), equal("version", f.Version, upgradeVersion))
	closeAll(fds)
}

func pairsReceived(t *testing.T, w wire) int {
	t.Helper()
	f, fds, err := w.receive(patience, "pairs")
	must(t, err)
	closeAll(fds)
	return len(f.Pairs)
}

// A late acknowledgement still counts, or cannot be sent: no connection may belong to
// both processes.
func TestUpgradeLateAck(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	old, young := wire{unixConn(t, fds[0])}, wire{unixConn(t, fds[1])}
	t.Run("in time", func(t *testing.T) {
		go func() {
			young.receive(patience, "pairs")
			young.send(frame{Kind: "ack"})
		}()
		must(t, old.exchange(frame{Kind: "pairs"}, nil))
	})
	t.Run("in the queue", func(t *testing.T) {
		must(t, young.send(frame{Kind: "ack"}))
		must(t, old.conn.CloseRead())
		_, _, err := old.receive(patience, "ack")
		must(t, err)
	})
	t.Run("too late", func(t *testing.T) {
		if err := young.send(frame{Kind: "ack"}); !errors.Is(err, unix.EPIPE) {
			t.Errorf("got %v, want %v", err, unix.EPIPE)
		}
	})
}

func unixConn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// fakeOld acts as the old process.
func fakeOld(t *testing.T, cfg Config, play func(w wire)) {
	t.Helper()
	s := &Server{}
	s.cfg.Store(&cfg)
	ln, err := net.ListenUnix("unix", s.upgradeSocket())
	must(t, err)
	done := make(chan bool)
	go func() {
		defer close(done)
		defer ln.Close()
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		play(wire{c})
	}()
	t.Cleanup(func() { ln.Close(); <-done })
}

// The new process ends when it cannot start to take over, and continues with its
// connections when the old one dies midway.
func TestUpgradeOldFails(t *testing.T) {
	sock, addr := socket(t, "127.0.0.1:0")
	defer sock.Close()
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.Listen = []string{addr}
	listeners := func(w wire, version int) {
		w.receive(patience, "hello")
		w.send(frame{Kind: "listeners", Version: version, Addresses: cfg.Listen}, int(sock.Fd()))
	}
	for _, tt := range []struct {
		name, want string
		play       func(w wire)
	}{
		{"silent", "take over: ", func(w wire) {}},
		{"another version", "version 2", func(w wire) { listeners(w, 2) }},
		{"ends before it gives anything", "take over", func(w wire) { listeners(w, upgradeVersion); w.receive(patience, "go") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fakeOld(t, cfg, tt.play)
			r := begin(t, cfg, Options{TakeOver: true})
			if err := receive(t, "the end of Run", r.ended); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want something with %q", err, tt.want)
			}
		})
	}
	t.Run("no old process", func(t *testing.T) {
		r := begin(t, cfg, Options{TakeOver: true})
		if err := receive(t, "the end of Run", r.ended); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("got %v, want %v", err, unix.ECONNREFUSED)
		}
	})
	t.Run("dies in the middle, or will not end", func(t *testing.T) {
		stays := make(chan bool)
		defer close(stays)
		client, left := tcpPair(t)
		server, right := tcpPair(t)
		fakeOld(t, cfg, func(w wire) {
			listeners(w, upgradeVersion)
			w.receive(patience, "go")
			h := handed{
				Listener: "gone:1", Backend: "10.0.0.9:1", Peer: netip.MustParseAddrPort("10.0.0.1:1234"), Up: 10, Down: 20,
				Client: handedEnd{Out: []byte("left for the client ")}, Server: handedEnd{Out: []byte("left for the backend ")},
			}
			w.send(frame{Kind: "pairs", Pairs: []handed{h}}, left, right)
			w.receive(patience, "ack")
			closeAll([]int{left, right})
			w.conn.Close()
			<-stays // holding the upgrade socket
		})
		cfg := cfg
		cfg.DrainTimeout = time.Hour
		r := begin(t, cfg, Options{TakeOver: true})
		r.awaitReady()
		hear(t, client, "left for the client ")
		hear(t, server, "left for the backend ")
		say(t, client, server, "and on")
		say(t, server, client, "it goes")
		a, b, _ := r.pairUp(p)
		say(t, a, b, "new ones too")
		r.endDrains() // the backend is not configured, so its connection is drained
		must(t, expectEOF(client), expectReset(server))
		must(t, equal("state", r.Status().Reason, ""))
	})
}

// tcpPair returns a connection with a bare descriptor as one end.
func tcpPair(t *testing.T) (*net.TCPConn, int) {
	t.Helper()
	ln, err := openListener("127.0.0.1:0", false, false)
	must(t, err)
	defer ln.Close()
	c := dial(t, ln.Addr().String())
	s, err := ln.AcceptTCP()
	must(t, err)
	defer s.Close()
	raw, err := s.SyscallConn()
	must(t, err)
	fd := -1
	raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	must(t, err)
	return c, fd
}

// Neither a socket file left by a killed process nor a socket in use keeps the next
// process from starting.
func TestUpgradeSocketFile(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.UpgradeSocket = filepath.Join(t.TempDir(), "upgrade.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.UpgradeSocket, Net: "unix"})
	must(t, err)
	ln.SetUnlinkOnClose(false)
	ln.Close()
	r := run(t, cfg, Options{})
	next := r.successor(nil)
	next.awaitReady()
	r.handedOver()
	next.awaitUpgradable()

	t.Run("no such directory", func(t *testing.T) {
		cfg := cfg
		cfg.UpgradeSocket = filepath.Join(t.TempDir(), "none", "upgrade.sock")
		cfg.Listen = Default().Listen
		r := begin(t, cfg, Options{})
		if err := receive(t, "the end of Run", r.ended); !errors.Is(err, unix.ENOENT) {
			t.Errorf("got %v, want %v", err, unix.ENOENT)
		}
	})
}

func init() { children["take over"] = childTakesOver }

// childTakesOver runs as another process, of another user.
func childTakesOver() {
	cfg := testConfig(os.Getenv("LB_TEST_BACKEND"))
	cfg.Listen = []string{os.Getenv("LB_TEST_LISTEN")}
	cfg.UpgradeSocket = os.Getenv("LB_TEST_SOCKET")
	s, err := New(cfg, Options{TakeOver: true})
	if err != nil {
		fmt.Println("New:", err)
		os.Exit(1)
	}
	fmt.Println("Run:", s.Run(parentsLife(), func() { fmt.Println("READY") }))
}

// A process of another user gets nothing; one of the same user gets everything.
func TestUpgradeOtherProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.UpgradeSocket = fmt.Sprintf("@kthwd-lb-test-%d", os.Getpid())
	r := run(t, cfg, Options{})
	client, server, _ := r.pairUp(p)
	talking, server2, _ := r.pairUp(p)
	talk := startTalk(talking, server2, 1, 64<<10, time.Millisecond)

	start := func(uid uint32) (*exec.Cmd, *harness.Log) {
		exe, err := os.ReadFile("/proc/self/exe") // this user's directory is closed to the other user
		must(t, err)
		dir, err := os.MkdirTemp("", "lb")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		must(t, os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "lb.test"), exe, 0o755))
		out := &harness.Log{}
		cmd := exec.Command(filepath.Join(dir, "lb.test"))
		cmd.Env = append(os.Environ(), "LB_TEST_CHILD=take over", "LB_TEST_BACKEND="+p.addr, "LB_TEST_LISTEN="+r.addr, "LB_TEST_SOCKET="+cfg.UpgradeSocket)
		cmd.Dir = dir
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
		in, err := cmd.StdinPipe()
		must(t, err, cmd.Start())
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		return cmd, out
	}
	_, out := start(65534)
	eventually(t, "the other user's process is refused", func() error {
		if !strings.Contains(out.String(), "Run: take over") || !strings.Contains(r.log.String(), "belongs to another user") {
			return fmt.Errorf("it said %q", out)
		}
		return nil
	})
	say(t, client, server, "as if nothing had happened")

	_, out = start(0)
	r.handedOver()
	eventually(t, "the new process is ready", func() error {
		if !strings.Contains(out.String(), "READY") {
			return fmt.Errorf("it said %q", out)
		}
		return nil
	})
	say(t, server, client, "another process now")
	talk.stop(t)
	c, s, _ := r.pairUp(p) // the child serves r.addr
	say(t, c, s, "hello")
	p.closeAll()
}

// A pair is detached without its pending turn, or it would be read after another process
// has received it.
func TestLetGoTakesTurnsBack(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	client, server, _ := r.pairUp(p)
	for _, l := range r.loops {
		l.call(func() {
			for _, p := range l.pairs {
				l.turnLater(p)
			}
			all := l.detachPairs(10, anyPair)
			for _, p := range l.again {
				if p.phase != ended {
					t.Errorf("a pair that was let go has a turn in phase %d", p.phase)
				}
			}
			if err := equal("pairs", len(l.pairs), 0); err != nil {
				t.Error(err)
			}
			for _, p := range all {
				l.attach(p)
			}
		})
	}
	say(t, client, server, "as before")
	say(t, server, client, "yes")
}
