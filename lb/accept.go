package lb

import (
	"bytes"
	"net"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A loop is what tcpproxy calls a listener: each of its Accept calls is a piece
// of the loop, which ends when a client has connected. tcpproxy then starts a
// goroutine that routes the connection and ends in Server.HandleConn, which gives it
// back to the loop, and calls Accept again, which lets that goroutine run first. So a
// connection is accepted, routed and connected on one thread, which wakes no other
// for it; and what is done for it is done on the loop's stack, not on one that has to
// grow first.
//
// Every loop that is in use (rebalance.go) accepts from every listener, and keeps what
// it accepts. The kernel wakes one of those that wait, the same one first
// (EPOLLEXCLUSIVE).

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
		l.routing = false
		runtime.Gosched()
		l.now = l.s.clock()
		l.yielded = l.now
		if l.inbox.Load() { // else another thread has taken that goroutine, and will wake the loop
			l.readInbox()
		}
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
	if l.barred || l.resting || l.handing {
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

// admit makes a pair of a client. If that has sent something already, as
// TCP_DEFER_ACCEPT has it, a backend is being connected to when admit returns.
func (l *loop) admit(a arrival) {
	p := a.pair()
	p.loop, p.born = l, l.now
	if most := l.s.settings().maxPerSource; most > 0 && !l.s.sources.enter(p, most) {
		l.s.refuse(p, rejectPerSource)
		return
	}
	if !l.readFirst(p) {
		l.s.refuse(p, rejectSilent)
		return
	}
	if !l.s.slots.set(a.fd, p) {
		l.s.refuse(p, rejectError)
		return
	}
	l.add(p)
	switch {
	case watch(l.epfd, unix.EPOLL_CTL_ADD, a.fd, unix.EPOLLIN|unix.EPOLLRDHUP) != 0:
		l.end(p, endError)
	case len(p.first) > 0:
		l.beginConnect(p)
	default:
		l.fresh.push(p, p.listener.silentUntil(p.born, l.s.settings().firstByte))
	}
}

// readFirst takes the first bytes, if they are there: a ClientHello, as a rule. It
// is false for a client that has left without any, such as a port check.
func (l *loop) readFirst(p *pair) bool {
	buf := l.buf[:16<<10]
	n, errno := recv(p.client.fd, buf)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return true
	case errno != 0 || n == 0:
		return false
	}
	p.first = bytes.Clone(buf[:n])
	p.client.readable = n == len(buf) // else what comes later is a new edge
	return true
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
