package lb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener is one listening socket. The loops accept from it (accept.go).
type listener struct {
	address string // as configured
	fd      int32
	addr    net.Addr

	active   atomic.Int64
	accepted atomic.Uint64
	rejected [len(rejectNames)]atomic.Uint64
	errors   [len(acceptErrorNames)]atomic.Uint64
	traffic  sync.Map // *Backend to *traffic
	once     sync.Once
}

// deferAccept is how many seconds the kernel keeps a silent client to itself.
const deferAccept = 5

// listen opens a listening socket.
func listen(address string) (*net.TCPListener, error) {
	lc := net.ListenConfig{KeepAlive: -1} // set on the listener, and inherited: no system call for each connection
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// newListener makes ln, which it closes, a listener of the server's kind: a bare
// descriptor, of which Go's poller does not hear.
func newListener(address string, ln *net.TCPListener) (*listener, error) {
	defer ln.Close()
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &listener{address: address, addr: ln.Addr()}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var n int
		if n, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed == nil {
			l.fd = int32(n)
			failed = prepareListener(l.fd)
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	return l, nil
}

// prepareListener sets what accepted connections inherit.
func prepareListener(fd int32) error {
	options := append([]struct {
		level, name int
		value       int32
	}{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferAccept},
	}, keepAliveOptions...)
	for _, o := range options {
		if errno := setInt(fd, o.level, o.name, o.value); errno != 0 {
			return os.NewSyscallError("setsockopt", errno)
		}
	}
	return nil
}

// close closes the socket. No loop may watch it any more.
func (l *listener) close() { l.once.Do(func() { closeFD(l.fd) }) }

// trafficWith counts the bytes between this listener's clients and a backend.
func (l *listener) trafficWith(b *Backend) *traffic {
	if t, ok := l.traffic.Load(b); ok {
		return t.(*traffic)
	}
	t, _ := l.traffic.LoadOrStore(b, &traffic{})
	return t.(*traffic)
}

// traffic is bytes, from clients and to them.
type traffic struct{ received, sent atomic.Uint64 }

func (t *traffic) count(fromClient bool, n int) {
	if fromClient {
		t.received.Add(uint64(n))
	} else {
		t.sent.Add(uint64(n))
	}
}

// accepted is a connection on its way from a loop through tcpproxy to the
// target. It is a bare descriptor. tcpproxy reads nothing of it, because the
// route matches always (tcpproxy.go:fixedTarget).
type accepted struct {
	net.Conn // nil: nobody may read or write it
	listener *listener
	loop     *loop
	fd       int32
	peer     netip.AddrPort
}

// Close implements net.Conn.
func (c *accepted) Close() error { closeFD(c.fd); return nil }

// RemoteAddr implements net.Conn.
func (c *accepted) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

// LocalAddr implements net.Conn.
func (c *accepted) LocalAddr() net.Addr { return c.listener.addr }

type rejectReason uint8

const (
	rejectPerSource rejectReason = iota
	rejectNoBackend
	rejectFirstByte
	rejectSilent
	rejectError
)

var rejectNames = [...]string{"per_source", "no_backend", "first_byte_timeout", "closed_silently", "error"}

type acceptError uint8

const (
	acceptEMFILE acceptError = iota
	acceptENFILE
	acceptENOBUFS
	acceptOther
	acceptLimit
)

var acceptErrorNames = [...]string{"emfile", "enfile", "enobufs", "other", "max_conns"}

// acceptErrorOf tells whether an error is a shortage, which wants a pause. The
// others are those of one connection, which is gone already (accept(2)).
func acceptErrorOf(errno syscall.Errno) (_ acceptError, wait bool) {
	switch errno {
	case unix.EMFILE:
		return acceptEMFILE, true
	case unix.ENFILE:
		return acceptENFILE, true
	case unix.ENOBUFS, unix.ENOMEM:
		return acceptENOBUFS, true
	case unix.ECONNABORTED, unix.EINTR, unix.EPERM, unix.ENETDOWN, unix.EPROTO, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENONET, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		return acceptOther, false
	}
	return acceptOther, true
}

// listenError says which address could not be listened on.
func listenError(address string, err error) error {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	return fmt.Errorf("listen on %s: %w", address, err)
}
