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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// listener is one listening socket. The loops accept from it (accept.go).
type listener struct {
	address   string // as configured
	index     int    // in Config.Listen
	fd        int32
	addr      net.Addr
	defers    int64                // nanoseconds that a silent client has waited already when it is accepted
	durations prometheus.Histogram // of connections
	once      sync.Once

	_        cpu.CacheLinePad
	active   atomic.Int64
	accepted atomic.Uint64
	rejected [len(rejectNames)]atomic.Uint64
	errors   [len(acceptErrorNames)]atomic.Uint64
}

// deferAccept is how long the kernel keeps a silent client to itself
// (TCP_DEFER_ACCEPT, tcp(7)): a part of the time that it has for its first byte.
// The kernel counts in retransmissions of its SYN-ACK, after 1 s and 3 s.
func deferAccept(firstByte time.Duration) time.Duration {
	switch {
	case firstByte >= 6*time.Second:
		return 3 * time.Second
	case firstByte >= 2*time.Second:
		return time.Second
	}
	return 0
}

// listen opens a listening socket.
func listen(address string) (*net.TCPListener, error) {
	lc := net.ListenConfig{KeepAlive: -1} // see keepAliveOptions
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// newListener makes ln, which it closes, a listener of the server's kind: a bare
// descriptor, of which Go's poller does not hear.
func newListener(address string, index int, ln *net.TCPListener, defers time.Duration) (*listener, error) {
	defer ln.Close()
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &listener{address: address, index: index, addr: ln.Addr(), defers: int64(defers), durations: newDurations(address)}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var n int
		if n, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed == nil {
			l.fd = int32(n)
			if failed = prepareListener(l.fd, defers); failed != nil {
				l.close()
			}
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	return l, nil
}

// prepareListener sets what accepted connections inherit: no system call for each.
//
// Keep-alive itself is off, for its timer is work that a short connection can do
// without (tcp_create_openreq_child); keepAlive turns it on.
//
// Without TCP_QUICKACK the kernel waits, for 40 ms at most, whether what arrives can be
// acknowledged together with an answer, as it does anyway later in a connection. With
// the same for the backends, three packets of twenty are saved for a request on a
// connection of its own. HAProxy has it as the options tcp-smart-accept and
// tcp-smart-connect.
func prepareListener(fd int32, defers time.Duration) error {
	options := append([]struct {
		level, name int
		value       int32
	}{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, int32(defers / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0}, // it may come from another with it on
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

// silentUntil is when a client that was accepted at born, and has sent nothing
// yet, is closed.
func (l *listener) silentUntil(born, firstByte int64) int64 {
	return born + max(firstByte-l.defers, int64(100*time.Millisecond))
}

// traffic is bytes, from clients and to them, that one loop has moved between one
// listener and one backend. The loops count at each read, so each has a cache line of
// its own.
type traffic struct {
	received, sent atomic.Uint64
	_              cpu.CacheLinePad
}

func (t *traffic) count(fromClient bool, n int) {
	if fromClient {
		t.received.Add(uint64(n))
	} else {
		t.sent.Add(uint64(n))
	}
}

// arrivals are clients that a loop has accepted at one go, on their way through
// tcpproxy to the target: bare descriptors, which pass as one connection, so that
// what tcpproxy does for each (a goroutine, a buffer) is done once for all. It
// reads nothing of it, because the route matches always (tcpproxy.go:fixedTarget).
type arrivals struct {
	net.Conn // nil: nobody may read or write it
	loop     *loop
	clients  []arrival
}

type arrival struct {
	listener *listener
	fd       int32
	peer     netip.AddrPort
}

func (a arrival) pair() *pair { return &pair{client: newEnd(a.fd), listener: a.listener, peer: a.peer} }

// Close implements net.Conn.
func (a *arrivals) Close() error {
	for _, c := range a.clients {
		closeFD(c.fd)
	}
	return nil
}

// RemoteAddr implements net.Conn.
func (a *arrivals) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(a.clients[0].peer) }

// LocalAddr implements net.Conn.
func (a *arrivals) LocalAddr() net.Addr { return a.clients[0].listener.addr }

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
