package lb

import (
	"errors"
	"fmt"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// An answer acknowledges its question, on both sides, and the question completes the
// handshake with the backend, which saves separate acknowledgements. The kernel waits
// 40 ms for that, so on a busy machine it takes more than one attempt.
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

// A connection that lasts gets keep-alive on both ends, with the same times.
func TestKeepAlive(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	r.pairUp(p)
	must(t, r.eachPair(func(l *loop, p *pair) error {
		if p.in != &l.young {
			return nil // the machine took seconds to get here
		}
		err := equal("keep-alive of a young connection", valuesOf(p, unix.SOL_SOCKET, unix.SO_KEEPALIVE), [2]int{})
		l.requeue(&l.young, p, l.now) // as if it were old enough
		return err
	}))
	eventually(t, "keep-alive", func() error {
		return r.eachPair(func(_ *loop, p *pair) error {
			return equal("of client and backend", valuesOf(p, unix.SOL_SOCKET, unix.SO_KEEPALIVE), [2]int{1, 1})
		})
	})
	must(t, r.eachPair(func(_ *loop, p *pair) (err error) {
		for _, o := range keepAliveOptions {
			err = errors.Join(err, equal(fmt.Sprintf("option %d", o.name), valuesOf(p, o.level, o.name), [2]int{int(o.value), int(o.value)}))
		}
		return err
	}))
}

// eachPair runs look for every pair in its loop. No pair at all is an error.
func (r *rig) eachPair(look func(*loop, *pair) error) error {
	var errs []error
	n := 0
	for _, l := range r.loops {
		l.call(func() {
			for _, p := range l.pairs {
				n++
				errs = append(errs, look(l, p))
			}
		})
	}
	if n == 0 {
		return errors.New("no pair")
	}
	return errors.Join(errs...)
}

// valuesOf returns an option's values on the client's and the backend's socket; -1 for an
// error.
func valuesOf(p *pair, level, option int) (values [2]int) {
	for i, fd := range []int32{p.client.fd, p.server.fd} {
		var err error
		if values[i], err = unix.GetsockoptInt(int(fd), level, option); err != nil {
			values[i] = -1
		}
	}
	return values
}

func tcpInfo(c net.Conn) (info *unix.TCPInfo, err error) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	failed := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	return info, errors.Join(failed, err)
}
