package lb

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// relistened returns the configuration of r with other listeners.
func (r *rig) relistened(listen ...string) Config {
	cfg := *r.cfg.Load()
	cfg.Listen = listen
	return cfg
}

// listens returns the addresses that status lists, those of removed ones in brackets.
func (r *rig) listens() string {
	var all []string
	for _, l := range r.Status().Listen {
		if l.Closed {
			all = append(all, "("+l.Address+")")
		} else {
			all = append(all, l.Address)
		}
	}
	return strings.Join(all, " ")
}

// refuses returns an error unless nobody listens at the address.
func refuses(addr string) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s accepts", addr)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return nil
}

// awaitUpgradable waits until the upgrade socket has the name that the configuration gives
// it: the process before may still have it.
func (r *rig) awaitUpgradable() {
	r.t.Helper()
	eventually(r.t, "the upgrade socket", func() error {
		conn, err := net.DialUnix("unix", nil, r.upgradeSocket())
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// sharesPort returns an error if a socket of this process has SO_REUSEPORT left.
func (r *rig) sharesPort() error {
	for _, l := range r.listeners {
		if on, err := unix.GetsockoptInt(int(l.fd), unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || on != 0 {
			return fmt.Errorf("%s: SO_REUSEPORT is %d, %v", l.address, on, err)
		}
	}
	return nil
}

// A reload opens the new addresses and closes the removed ones. Connections last, also at
// an address that is gone; one that stays is served throughout; one that comes back counts
// on; and a new process takes over what the reload has made.
func TestReloadListen(t *testing.T) {
	p, q := newPeer(t), newPeerAt(t, "127.0.0.1:0", answer)
	first, second, stays := unused(t), unused(t), unused(t)
	cfg := testConfig(p.addr)
	cfg.Listen = []string{first, stays}
	r := run(t, cfg, Options{})
	client, server, _ := r.pairUp(p)
	was := r.listeners[1]

	must(t, r.Reload(r.relistened(stays, second)))
	must(t, equal("listeners", r.listens(), fmt.Sprintf("%s %s (%s)", stays, second, first)), refuses(first))
	must(t, equal("the one that stays", r.listeners[0], was))
	say(t, client, server, "as before")
	say(t, server, client, "as before")
	c := dial(t, second)
	atSecond, _ := introduce(t, c, p)
	say(t, c, atSecond, "served")

	// Clients of the address that stays notice nothing of many changes.
	more := r.relistened(stays, second)
	more.Backends = []string{q.addr, p.addr + " weight 0"}
	must(t, r.Reload(more))
	load := &rig{Server: r.Server, t: t, addr: stays}
	l := load.load(2)
	for i := range 20 {
		must(t, r.Reload(r.relistened([][]string{{stays}, {second, stays}, {first, stays, second}}[i%3]...)))
	}
	eventually(t, "clients were answered", func() error {
		if l.answered.Load() < 20 && l.failed.Load() == nil {
			return errors.New("not yet")
		}
		return nil
	})
	l.stop()
	l.all.Wait()
	if err := l.failed.Load(); err != nil {
		t.Errorf("a client of the address that stays: %v", *err)
	}

	must(t, r.Reload(r.relistened(second, stays)))
	say(t, client, server, "still there")
	accepted := map[string]uint64{}
	for _, l := range r.Status().Listen {
		accepted[l.Address] = l.Accepted
	}
	must(t, equal("accepted at the removed one", accepted[first], 1), client.Close(), expectEOF(server), server.Close())
	eventually(t, "the removed one is gone from status", func() error { return equal("listeners", r.listens(), second+" "+stays) })
	must(t, r.Reload(r.relistened(first, second)))
	d := dial(t, first)
	must(t, write(d, "question"))
	hear(t, d, "answer")
	must(t, equal("accepted after the return", r.Status().Listen[0].Accepted, 2))
	if _, err := prometheusGather(r); err != nil {
		t.Error(err)
	}

	next := r.successor(nil)
	next.awaitReady()
	r.handedOver()
	say(t, c, atSecond, "in the new process")
	must(t, equal("listeners of the new process", next.listens(), first+" "+second), refuses(stays))
}

// Without all new addresses there is none: the error names each that cannot be had, and
// the old ones are served as before.
func TestReloadListenRefused(t *testing.T) {
	p := newPeer(t)
	good, taken := unused(t), newPeer(t).addr
	r := run(t, testConfig(p.addr), Options{})
	client, server, _ := r.pairUp(p)
	must(t, r.Reload(r.relistened(r.addr, good)), r.Reload(r.relistened(r.addr)))
	err := r.Reload(r.relistened(good, taken, "192.0.2.50:6443"))
	for _, want := range []string{"listen on " + taken + ": address already in use", "no interface has 192.0.2.50"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	must(t, equal("configured", fmt.Sprint(r.cfg.Load().Listen), fmt.Sprint([]string{r.addr})), refuses(good), equal("listeners", r.listens(), r.addr))
	cfg := r.relistened(r.addr, good) // the access log is opened last
	cfg.AccessLog = t.TempDir() + "/none/access.log"
	if err := r.Reload(cfg); err == nil {
		t.Error("an access log without a directory is accepted")
	}
	must(t, refuses(good))
	say(t, client, server, "as before")
	client, server, _ = r.pairUp(p)
	say(t, client, server, "new ones as before")
	cfg = r.relistened(r.addr, "192.0.2.50:6443")
	cfg.Freebind = true
	must(t, r.Reload(cfg), equal("listeners", r.listens(), r.addr+" 192.0.2.50:6443"))
}

// A new address may overlap the one that it replaces, in both directions, and be the same
// one in another spelling.
func TestReloadListenOverlap(t *testing.T) {
	p := newPeer(t)
	at := unused(t)
	port := at[strings.LastIndex(at, ":"):]
	cfg := testConfig(p.addr)
	cfg.Listen = []string{at}
	r := run(t, cfg, Options{})
	var held [][2]*net.TCPConn
	for _, listen := range [][]string{{":" + port[1:]}, {"0.0.0.0" + port, "[::]" + port}, {at, "127.0.0.2" + port}, {"localhost" + port}, {"[::]" + port, at}, {":" + port[1:]}, {at}} {
		socket := r.listeners[0]
		if err := r.Reload(r.relistened(listen...)); err != nil {
			t.Fatalf("%q: %v", listen, err)
		}
		must(t, r.sharesPort())
		if listen[0] == "localhost"+port {
			must(t, equal("socket of the same address", inode(t, r.listeners[0].fd) != 0 && r.listeners[0].addr == socket.addr, true))
		}
		client, server, _ := r.pairUp(p)
		held = append(held, [2]*net.TCPConn{client, server})
		for _, h := range held {
			say(t, h[0], h[1], "hello")
			say(t, h[1], h[0], "hello")
		}
	}
	must(t, refuses("127.0.0.2"+port), refuses("[::1]"+port))
	// A program beside is in the way, also of an address that overlaps.
	other, err := openListener("127.0.0.2"+port, false, false)
	must(t, err)
	defer other.Close()
	if err := r.Reload(r.relistened(port)); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("beside another program: got %v", err)
	}
	must(t, r.sharesPort())
	client, server, _ := r.pairUp(p)
	say(t, client, server, "as before")
}

func inode(t *testing.T, fd int32) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(int(fd), &st))
	return st.Ino
}

// The service manager's socket stays: without an address that it has, nobody would serve
// its clients. A new process knows which those are.
func TestReloadListenService(t *testing.T) {
	p := newPeer(t)
	f, addr := socket(t, "127.0.0.1:0")
	more := unused(t)
	cfg := testConfig(p.addr)
	cfg.Listen = []string{addr}
	r := run(t, cfg, Options{Sockets: []*os.File{f}})
	for range 2 {
		err := r.Reload(r.relistened(more))
		if err == nil || !strings.Contains(err.Error(), "Listen lacks "+addr+", on which the service manager listens") {
			t.Errorf("got %v", err)
		}
		must(t, refuses(more), r.Reload(r.relistened(more, addr)), r.Reload(r.relistened(addr)))
		client, server, _ := r.pairUp(p)
		say(t, client, server, "hello")
		next := r.successor(nil)
		next.awaitReady()
		r.handedOver()
		say(t, client, server, "hello")
		r = next
	}
}
