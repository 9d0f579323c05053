package lb

import (
	"net"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A loop is what tcpproxy calls a listener: each of its Accept calls is a piece
// of the loop, which ends when a client has connected. tcpproxy then starts a
// goroutine that routes the connection and ends in Server.HandleConn, and calls
// Accept again, which lets that goroutine run first. So a connection is accepted,
// routed and connected on one thread, which wakes no other for it.
//
// Every loop accepts from every listener and keeps what it accepts. The kernel
// wakes one of those that wait, the same one first (EPOLLEXCLUSIVE): while the load
// is low, few threads are awake, and the others join when that one is busy.

var _ net.Listener = (*loop)(nil)

const (
	acceptBatch      = 8 // from one listener, before other events have their turn
	acceptPauseLeast = int64(5 * time.Millisecond)
	acceptPauseMost  = int64(25 * time.Millisecond)
)

// Accept implements net.Listener. It returns an error only after Close: what
// passes, such as a shortage of descriptors, must not end the listener
// (tcpproxy.go:serveListener).
func (l *loop) Accept() (net.Conn, error) {
	if l.routing { // what was returned before
		l.routing, l.yielded = false, l.now
		runtime.Gosched()
	}
	for {
		if len(l.newcomers) > 0 {
			a := &arrivals{loop: l, clients: slices.Clone(l.newcomers)}
			l.newcomers = l.newcomers[:0]
			l.routing = true
			return a, nil
		}
		if l.closed.Load() {
			go l.run() // the connections that are there go on
			return nil, net.ErrClosed
		}
		l.turn()
	}
}

// Close implements net.Listener: Accept returns an error. The loop goes on, and
// so does whatever it watches; see stop.
func (l *loop) Close() error {
	l.closed.Store(true)
	l.post(func() {})
	return nil
}

// Addr implements net.Listener.
func (l *loop) Addr() net.Addr { return l.s.listeners[0].addr }

// listen has the loop accept.
func (l *loop) listen() {
	if l.barred {
		return
	}
	l.listening, l.listenAgain = true, 0
	for _, ln := range l.s.listeners {
		watchListener(l.epfd, unix.EPOLL_CTL_ADD, ln.fd)
	}
}

// unlisten has it stop. Who connects waits in the kernel's queue, which outlives
// this process where another one has the socket, too.
func (l *loop) unlisten() {
	l.listening, l.listenAgain = false, 0
	for _, ln := range l.s.listeners {
		watchListener(l.epfd, unix.EPOLL_CTL_DEL, ln.fd)
	}
}

// pauseAccept waits for a shortage to pass.
func (l *loop) pauseAccept() {
	l.unlisten()
	l.acceptPause = min(max(2*l.acceptPause, acceptPauseLeast), acceptPauseMost)
	l.listenAgain = l.now + l.acceptPause
}

// accept takes the clients that wait at a listener.
func (l *loop) accept(ln *listener) {
	for range acceptBatch {
		if !l.listening {
			return
		}
		if l.s.full() {
			ln.errors[acceptLimit].Add(1)
			l.pauseAccept()
			return
		}
		if !l.s.reserve.whole() {
			ln.errors[acceptEMFILE].Add(1)
			l.pauseAccept()
			return
		}
		fd, peer, errno := accept(ln.fd)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0:
			kind, wait := acceptErrorOf(errno)
			ln.errors[kind].Add(1)
			if wait {
				l.pauseAccept()
			}
		default:
			l.acceptPause = 0
			l.s.active.Add(1)
			ln.active.Add(1)
			ln.accepted.Add(1)
			l.newcomers = append(l.newcomers, arrival{listener: ln, fd: fd, peer: peer})
		}
	}
}

// atListener finds the listener that an event is about.
func (s *Server) atListener(fd int32) *listener {
	for _, ln := range s.listeners {
		if ln.fd == fd {
			return ln
		}
	}
	return nil
}
