package lb

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// An answer acknowledges its question, on both sides, and the question completes the
// handshake with the backend: what a machine sends for itself alone is saved. The
// kernel waits 40 ms for that, so on a busy machine it takes more than one attempt.
func TestPacketsSaved(t *testing.T) {
	asked := make(chan uint32, 1)
	p := newPeerAt(t, "127.0.0.1:0", func(c net.Conn) {
		var b [8]byte
		if _, err := c.Read(b[:]); err != nil {
			return
		}
		info, err := tcpInfo(c)
		if err != nil {
			t.Error(err)
			return
		}
		asked <- info.Segs_in
		write(c, "answer")
		c.Read(b[:]) // until the client leaves
	})
	r := run(t, testConfig(p.addr), Options{})
	eventually(t, "few packets", func() error {
		c := r.dial()
		defer c.Close()
		must(t, write(c, "question"))
		backend := receive(t, "question", asked)
		hear(t, c, "answer")
		info, err := tcpInfo(c)
		must(t, err)
		client := info.Segs_in
		if backend != 2 || client != 2 {
			return fmt.Errorf("got %d packets at the backend, for a connection with a question, and %d at the client, for one with an answer; want 2 and 2", backend, client)
		}
		return nil
	})
}

// Keep-alive is for who stays: for both ends, with times that both have from the start.
func TestKeepAlive(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	r.pairUp(p)
	of := func(name string, option int) (values [2]int) {
		for _, l := range r.loops {
			l.call(func() {
				for _, p := range l.pairs {
					for i, fd := range []int32{p.client.fd, p.server.fd} {
						level := unix.IPPROTO_TCP
						if option == unix.SO_KEEPALIVE {
							level = unix.SOL_SOCKET
						}
						n, err := unix.GetsockoptInt(int(fd), level, option)
						if err != nil {
							t.Errorf("%s: %v", name, err)
						}
						values[i] = n
					}
				}
			})
		}
		return values
	}
	must(t, equal("keep-alive of a young connection", of("SO_KEEPALIVE", unix.SO_KEEPALIVE), [2]int{0, 0}))
	for _, l := range r.loops {
		l.call(func() { // it is older than it was
			for p := range l.young.all() {
				l.requeue(&l.young, p, l.now)
			}
		})
	}
	eventually(t, "keep-alive", func() error {
		return equal("of client and backend", of("SO_KEEPALIVE", unix.SO_KEEPALIVE), [2]int{1, 1})
	})
	for _, o := range keepAliveOptions {
		must(t, equal(fmt.Sprintf("option %d", o.name), of("TCP", o.name), [2]int{int(o.value), int(o.value)}))
	}
}

func tcpInfo(c net.Conn) (info *unix.TCPInfo, err error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	failed := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	return info, errors.Join(failed, err)
}
