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

	"golang.org/x/sys/unix"
)

// listener is one listening socket, as tcpproxy wants it: Accept never returns
// an error that passes, for tcpproxy would end the listener at it
// (tcpproxy.go:serveListener). Shortage of descriptors, and the limit on
// connections, make it wait; clients wait in the kernel's queue meanwhile.
type listener struct {
	s       *Server
	address string   // as configured
	file    *os.File // the socket; a net.TCPListener's SyscallConn cannot wait (net/rawconn.go:rawListener)
	raw     syscall.RawConn
	addr    net.Addr

	active   atomic.Int64
	accepted atomic.Uint64
	rejected [len(rejectNames)]atomic.Uint64
	errors   [len(acceptErrorNames)]atomic.Uint64
	traffic  sync.Map // *Backend to *traffic

	mu     sync.Mutex
	paused chan struct{} // closed when it goes on; nil while it accepts
	over   chan struct{} // closed by Close
	once   sync.Once
}

const (
	acceptPauseLeast = 5 * time.Millisecond
	acceptPauseMost  = 100 * time.Millisecond
	deferAccept      = 5 // seconds in which the kernel keeps a silent client to itself
)

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

// newListener makes ln, which it closes, a listener of the server's kind.
func (s *Server) newListener(address string, ln *net.TCPListener) (*listener, error) {
	defer ln.Close()
	file, err := ln.File()
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = prepareListener(int32(fd)) }), err)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &listener{s: s, address: address, file: file, raw: raw, addr: ln.Addr(), over: make(chan struct{})}, nil
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

// Accept implements net.Listener. What it returns is an *accepted.
func (l *listener) Accept() (net.Conn, error) {
	pause := acceptPauseLeast
	for {
		if err := l.await(); err != nil {
			return nil, err
		}
		if l.s.full() {
			l.errors[acceptLimit].Add(1)
			pause = l.pause(pause)
			continue
		}
		c := &accepted{listener: l}
		var errno syscall.Errno
		err := l.raw.Read(func(fd uintptr) bool {
			c.fd, c.peer, errno = accept(int(fd))
			return errno != unix.EAGAIN
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // paused
		case err != nil:
			return nil, net.ErrClosed
		case errno == 0:
			l.s.active.Add(1)
			l.active.Add(1)
			l.accepted.Add(1)
			return c, nil
		default:
			if kind, wait := acceptErrorOf(errno); wait {
				l.errors[kind].Add(1)
				pause = l.pause(pause)
			}
		}
	}
}

// await blocks while the listener is paused.
func (l *listener) await() error {
	l.mu.Lock()
	paused := l.paused
	l.mu.Unlock()
	if paused != nil {
		select {
		case <-paused:
		case <-l.over:
		}
	}
	select {
	case <-l.over:
		return net.ErrClosed
	default:
		return nil
	}
}

func (l *listener) pause(d time.Duration) (next time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.over:
	}
	return min(2*d, acceptPauseMost)
}

// hold stops accepting: who connects waits in the kernel's queue, which outlives
// this process where another one has the socket, too.
func (l *listener) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused == nil {
		l.paused = make(chan struct{})
		l.file.SetDeadline(time.Unix(1, 0))
	}
}

// goOn takes hold back.
func (l *listener) goOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused != nil {
		l.file.SetDeadline(time.Time{})
		close(l.paused)
		l.paused = nil
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.over) })
	return l.file.Close()
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

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

// accepted is a connection on its way from a listener to the target. It is a
// bare descriptor: Go's poller never hears of it. tcpproxy reads nothing of it,
// because the route matches always (tcpproxy.go:fixedTarget).
type accepted struct {
	net.Conn // nil: nobody may read or write it
	listener *listener
	fd       int32
	peer     netip.AddrPort
}

// Close implements net.Conn.
func (c *accepted) Close() error { closeFD(c.fd); return nil }

// RemoteAddr implements net.Conn.
func (c *accepted) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

// LocalAddr implements net.Conn.
func (c *accepted) LocalAddr() net.Addr { return c.listener.Addr() }

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
