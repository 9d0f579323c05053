package lb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRelay(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, client, server *net.TCPConn)
	}{
		{"echo", func(t *testing.T, client, server *net.TCPConn) {
			for i := range 100 {
				say(t, client, server, fmt.Sprint("question ", i))
				say(t, server, client, fmt.Sprint("answer ", i))
			}
			must(t, client.Close(), expectEOF(server))
		}},
		{"client ends first", func(t *testing.T, client, server *net.TCPConn) {
			must(t, client.CloseWrite(), expectEOF(server))
			say(t, server, client, "an answer, afterwards")
			must(t, server.Close(), expectEOF(client))
		}},
		{"backend ends first", func(t *testing.T, client, server *net.TCPConn) {
			must(t, server.CloseWrite(), expectEOF(client))
			say(t, client, server, "more, afterwards")
			must(t, client.Close(), expectEOF(server))
		}},
		{"end right behind data", func(t *testing.T, client, server *net.TCPConn) {
			must(t, corked(client, "the last of the client"))
			hear(t, server, "the last of the client")
			must(t, expectEOF(server), corked(server, "the last of the backend"))
			hear(t, client, "the last of the backend")
			must(t, expectEOF(client))
		}},
		{"end right behind bulk", func(t *testing.T, client, server *net.TCPConn) {
			together(t,
				func() error { defer client.CloseWrite(); return sendStream(client, 1, 3<<20+17) },
				func() error { defer server.CloseWrite(); return sendStream(server, 2, 5<<20+3) },
				func() error { return expectStream(client, 2, 5<<20+3) },
				func() error { return expectStream(server, 1, 3<<20+17) })
			must(t, expectEOF(client), expectEOF(server))
		}},
		{"client resets", func(t *testing.T, client, server *net.TCPConn) {
			must(t, client.SetLinger(0), client.Close(), expectReset(server))
		}},
		{"backend resets", func(t *testing.T, client, server *net.TCPConn) {
			must(t, server.SetLinger(0), server.Close(), expectReset(client))
		}},
		{"client resets after its end", func(t *testing.T, client, server *net.TCPConn) {
			must(t, client.CloseWrite(), expectEOF(server), client.SetLinger(0), client.Close())
			eventually(t, "writes fail", func() error {
				if _, err := server.Write([]byte("x")); err == nil {
					return fmt.Errorf("they do not")
				}
				return nil
			})
		}},
		{"backend resets while bulk is on its way to it", func(t *testing.T, client, server *net.TCPConn) {
			together(t,
				func() error {
					if err := expectStream(server, 1, 1<<20); err != nil {
						return err
					}
					server.SetLinger(0)
					return server.Close()
				},
				func() error {
					if err := sendStream(client, 1, 64<<20); err == nil {
						return fmt.Errorf("everything was sent without a reader")
					}
					return nil
				})
		}},
		{"slow reader at the backend", func(t *testing.T, client, server *net.TCPConn) { slowReader(t, client, server) }},
		{"slow reader at the client", func(t *testing.T, client, server *net.TCPConn) { slowReader(t, server, client) }},
		{"small writes to a slow reader", func(t *testing.T, client, server *net.TCPConn) {
			must(t, client.SetReadBuffer(64<<10), server.SetWriteBuffer(16<<10))
			r := rand.New(stream(3))
			together(t,
				func() error {
					defer server.CloseWrite()
					from := stream(4)
					for sent := 0; sent < 1<<20; {
						n := min(1+r.IntN(3000), 1<<20-sent)
						if _, err := io.CopyN(server, from, int64(n)); err != nil {
							return err
						}
						sent += n
					}
					return nil
				},
				func() error { return expectStream(&trickle{r: client, most: 700, every: 64 << 10}, 4, 1<<20) })
			must(t, expectEOF(client))
		}},
		{"bulk both ways with pauses", func(t *testing.T, client, server *net.TCPConn) {
			const n = 64 << 20
			together(t,
				func() error { return sendStream(client, 5, n) },
				func() error { return sendStream(server, 6, n) },
				func() error { return expectStream(&trickle{r: client, every: 4 << 20}, 6, n) },
				func() error { return expectStream(&trickle{r: server, every: 5 << 20}, 5, n) })
			say(t, client, server, "and on")
			say(t, server, client, "it goes")
		}},
	} {
		for _, mode := range []string{"spliced", "copied", "accepted early"} {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				p := newPeer(t)
				r := run(t, testConfig(p.addr), Options{})
				switch mode {
				case "copied": // as when only small pipes are left
					for _, l := range r.loops {
						l.call(func() { l.pipes.none = true })
					}
				case "accepted early":
					r.noDefer()
				}
				client, server, _ := r.pairUp(p)
				tt.do(t, client, server)
				client.Close()
				server.Close()
				r.empty()
				r.noPipes()
			})
		}
	}
}

// noPipes holds that idle loops keep few pipes.
func (r *rig) noPipes() {
	r.t.Helper()
	for _, l := range r.loops {
		l.call(func() {
			if n := len(l.pipes.spare); n > sparePipe {
				r.t.Errorf("a loop keeps %d pipes", n)
			}
			for _, p := range l.pipes.spare {
				if p.full != 0 {
					r.t.Errorf("a spare pipe has %d bytes in it", p.full)
				}
			}
		})
	}
}

// corked sends a text and FIN in one segment.
func corked(c *net.TCPConn, text string) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 1) })
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	return c.CloseWrite()
}

// trickle reads slowly: a limited number of bytes at a time, with pauses in which the
// buffers before it fill up.
type trickle struct {
	r     io.Reader
	most  int // 0 for no limit
	every int
	read  int
}

func (s *trickle) Read(p []byte) (int, error) {
	if s.most > 0 && len(p) > s.most {
		p = p[:s.most]
	}
	n, err := s.r.Read(p)
	if s.read += n; s.read >= s.every {
		s.read = 0
		pause(3 * time.Millisecond)
	}
	return n, err
}

// slowReader stops reading until the sender is blocked, which shows that memory is
// bounded, and then reads everything.
func slowReader(t *testing.T, from, to *net.TCPConn) {
	t.Helper()
	must(t, from.SetWriteBuffer(64<<10), to.SetReadBuffer(64<<10))
	n := 2 * (largestBuffer(t, "tcp_rmem") + largestBuffer(t, "tcp_wmem")) // the balancer has one of each here
	written := make(chan int, 1)
	src := stream(7)
	go func() {
		sent, buf := 0, make([]byte, 64<<10)
		for sent < n {
			src.Read(buf)
			from.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
			m, err := from.Write(buf)
			sent += m
			if err != nil {
				break
			}
		}
		written <- sent
	}()
	sent := receive(t, "the sender is blocked", written)
	if sent == n {
		t.Fatalf("%d bytes were taken for a reader that reads nothing", n)
	}
	from.SetWriteDeadline(time.Now().Add(patience))
	together(t,
		func() error { return from.CloseWrite() },
		func() error { return expectStream(to, 7, sent) })
	must(t, expectEOF(to))
}

// largestBuffer is what the kernel gives to one socket.
func largestBuffer(t *testing.T, name string) (size int) {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
	must(t, err)
	var least, first int
	_, err = fmt.Sscan(string(text), &least, &first, &size)
	must(t, err)
	return size
}

func TestManyConnections(t *testing.T) {
	const conns = 200
	peers := []*peer{newPeer(t), newPeer(t), newPeer(t)}
	r := run(t, testConfig(peers[0].addr, peers[1].addr, peers[2].addr), Options{})
	var all []func() error
	for i := range conns {
		client, server, _ := r.pairUp(peers...)
		rnd := rand.New(stream(uint64(i)))
		up, down := size(rnd), size(rnd)
		seed := uint64(1000 + 2*i)
		all = append(all,
			func() error { defer client.CloseWrite(); return sendStream(client, seed, up) },
			func() error { defer server.CloseWrite(); return sendStream(server, seed+1, down) },
			func() error { return errorsOf(expectStream(client, seed+1, down), expectEOF(client)) },
			func() error { return errorsOf(expectStream(server, seed, up), expectEOF(server)) })
	}
	together(t, all...)
	r.empty()
	for _, p := range peers {
		if b := r.backend(p.addr); b.total.Load() < conns/3-1 {
			t.Errorf("%s got %d of %d connections", b.name, b.total.Load(), conns)
		}
	}
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// size returns the size of a stream: most are small, some are large.
func size(r *rand.Rand) int { return r.IntN(1 << (4 + r.IntN(18))) }

func TestSilentClients(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.FirstByteTimeout = time.Hour
	r := run(t, cfg, Options{}).noDefer()
	allow := func(t *testing.T, timeout time.Duration) {
		t.Helper()
		cfg := *r.cfg.Load()
		cfg.FirstByteTimeout = timeout
		must(t, r.Reload(cfg))
	}

	t.Run("leaves without a word", func(t *testing.T) {
		c := r.dial()
		eventually(t, "accepted", func() error { return equal("connections", r.active.Load(), 1) })
		c.Close()
		r.empty()
	})
	t.Run("stays without a word", func(t *testing.T) {
		allow(t, 150*time.Millisecond)
		defer allow(t, time.Hour)
		c := r.dial()
		must(t, expectEOF(c))
		r.empty()
		must(t, equal("first_byte_timeout", r.listeners[0].rejected[rejectFirstByte].Load(), 1))
	})
	t.Run("resets", func(t *testing.T) {
		c := r.dial()
		eventually(t, "accepted", func() error { return equal("connections", r.active.Load(), 1) })
		c.SetLinger(0)
		c.Close()
		r.empty()
	})
	must(t, equal("connections at the backend", p.count.Load(), 0))
	t.Run("speaks in time", func(t *testing.T) {
		c := r.dial()
		eventually(t, "accepted", func() error { return equal("connections", r.active.Load(), 1) })
		s, _ := introduce(t, c, p)
		say(t, s, c, "hello")
	})
}

func TestHalfCloseTimeout(t *testing.T) {
	for _, first := range []string{"client", "backend"} {
		t.Run(first, func(t *testing.T) {
			for timeout := 300 * time.Millisecond; !staysHalfClosed(t, first, timeout); timeout *= 2 {
				t.Logf("this machine cannot write once in %v", timeout)
			}
		})
	}
}

// staysHalfClosed checks that a connection with one side closed stays as long as data
// arrives, and no longer than the timeout. It returns false when the data came too late.
func staysHalfClosed(t *testing.T, first string, timeout time.Duration) bool {
	t.Helper()
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.HalfCloseTimeout = timeout
	r := run(t, cfg, Options{})
	client, server, _ := r.pairUp(p)
	a, b := client, server
	if first == "backend" {
		a, b = b, a
	}
	last := time.Now()
	must(t, a.CloseWrite(), expectEOF(b))
	for range 8 {
		_, err := io.WriteString(b, "still here")
		if err == nil {
			_, err = io.ReadFull(a, make([]byte, len("still here")))
		}
		switch late := time.Since(last) > timeout/2; {
		case late && timeout < patience:
			return false
		case err != nil:
			t.Fatalf("%v after the data before: %v", time.Since(last), err)
		}
		last = time.Now()
		pause(timeout / 6)
	}
	must(t, expectEOF(a))
	r.empty()
	must(t, equal("half_close_timeout", r.backend(p.addr).closed[endHalfClose].Load(), 1))
	return true
}

// Clients that do not read use a bounded amount of this process's memory, whatever their
// number.
func TestSlowReadersHoldFewPipes(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const readers = 200
	blocked := make(chan bool, readers)
	for range readers {
		_, server, _ := r.pairUp(p)
		context.AfterFunc(ctx, func() { server.Close() })
		go func() {
			buf := make([]byte, 1<<20)
			for {
				server.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
				if _, err := server.Write(buf); err != nil {
					blocked <- true
					return
				}
			}
		}()
	}
	for range readers {
		receive(t, "a sender is blocked", blocked)
	}
	var used int
	for _, l := range r.loops {
		l.call(func() {
			for _, p := range l.pairs {
				if p.client.pipe != nil {
					used++
				}
				if n := len(p.client.out); n > bufferSize {
					t.Errorf("%d bytes are kept for a reader", n)
				}
			}
		})
	}
	if most := mostPipes * len(r.loops); used > most {
		t.Errorf("%d pipes are full, want %d at most", used, most)
	}
}

// A pair that had more to read than one turn allows is continued once in the next turn,
// however many events its data brings, so that others wait for no more than that. One that
// got on the list by an event of this turn has had its share.
func TestOneShareOfATurn(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{balanceEvery: time.Hour})
	client, server, _ := r.pairUp(p)
	l := r.loops[0]
	var problem error
	l.call(func() {
		var one *pair
		for _, one = range l.pairs {
		}
		moved := one.up
		problem = errors.Join(equal("pairs", len(l.pairs), 1), equal("list", len(l.again), 0))
		l.turnLater(one)
		if _, err := client.Write([]byte("more")); err != nil {
			problem = errors.Join(problem, err)
		}
		for end := time.Now().Add(patience); ; { // the loop stands still, and the kernel does not
			if n, err := unix.IoctlGetInt(int(one.client.fd), unix.TIOCINQ); err != nil || n == 4 || time.Now().After(end) {
				problem = errors.Join(problem, err, equal("bytes that wait", n, 4))
				break
			}
		}
		l.event(one.client.fd, unix.EPOLLIN)
		problem = errors.Join(problem, equal("moved by the event", one.up-moved, 0))
		l.takeTurns(0)
		problem = errors.Join(problem, equal("moved in the turn that put it on the list", one.up-moved, 0), equal("list", len(l.again), 1))
		l.takeTurns(1)
		problem = errors.Join(problem, equal("moved in the next turn", one.up-moved, 4), equal("list", len(l.again), 0))
	})
	must(t, problem)
	got := make([]byte, 4)
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "more" {
		t.Errorf("got %q, %v", got, err)
	}
}
