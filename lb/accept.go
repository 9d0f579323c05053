package lb

import (
	"bytes"
	"net"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// To tcpproxy, a loop is a listener: each Accept call runs the loop until a client
// has connected. tcpproxy then starts a goroutine that routes the connection and ends
// in Server.HandleConn, which returns it to the loop. tcpproxy calls Accept again,
// which lets that goroutine run first. So a connection is accepted, routed and
// connected on one thread, which wakes no other, and on the loop's stack, which need
// not grow first.
//
// Every loop in use (rebalance.go) accepts from every listener, and keeps the
// connections it accepts. The kernel wakes one of the waiting loops, always the same
// one first (EPOLLEXCLUSIVE).

var _ net.Listener = (*loop)(nil)

const (
	acceptBatch      = 8 // connections from one listener before other events are handled
	acceptPauseLeast = int64(5 * time.Millisecond)
	acceptPauseMost  = int64(25 * time.Millisecond)
)

// Accept implements net.Listener. It returns an error only after Close: a passing
// fault, such as a shortage of descriptors, must not end the listener
// (tcpproxy.go:serveListener).
func (l *loop) Accept() (net.Conn, error) {
	if l.routing { // the clients returned by the previous call
		l.routing = false
		runtime.Gosched()
		l.now = l.s.clock()
		l.yielded = l.now
		if l.inbox.Load() { // else another thread runs that goroutine and will wake the loop
			l.readInbox()
			l.closeAll() // of clients that were closed at once: the next turn may wait for long
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
			go l.run() // existing connections continue
			return nil, net.ErrClosed
		}
		l.turn()
	}
}

// Close implements net.Listener: it makes Accept return an error. The loop and its
// connections continue; see stop.
func (l *loop) Close() error {
	l.closed.Store(true)
	l.post(func() {})
	return nil
}

// Addr implements net.Listener.
func (l *loop) Addr() net.Addr {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.s.listeners[0].addr
}

// startAccepting watches the listeners, unless the loop is resting, handing over or
// closed.
func (l *loop) startAccepting() {
	if l.barred || l.resting || l.handingOver {
		return
	}
	l.accepting, l.acceptAgain = true, 0
	for _, ln := range l.listeners {
		watchListener(l.epfd, unix.EPOLL_CTL_ADD, ln.fd)
	}
}

// stopAccepting stops watching the listeners. New clients wait in the kernel's queue,
// which outlives this process if another process has the socket, too.
func (l *loop) stopAccepting() {
	l.accepting, l.acceptAgain = false, 0
	for _, ln := range l.listeners {
		watchListener(l.epfd, unix.EPOLL_CTL_DEL, ln.fd)
	}
}

// pauseAccept stops accepting until a shortage may have passed.
func (l *loop) pauseAccept() {
	l.stopAccepting()
	l.acceptPause = min(max(2*l.acceptPause, acceptPauseLeast), acceptPauseMost)
	l.acceptAgain = l.now + l.acceptPause
}

// accept accepts clients waiting at a listener.
func (l *loop) accept(ln *listener) {
	for range acceptBatch {
		if !l.accepting {
			return
		}
		if l.s.full() {
			ln.errors[acceptLimit].Add(1)
			l.s.reach(limitKind(l.s.limitBy.Load()))
			l.pauseAccept()
			return
		}
		if !l.s.reserve.whole() {
			ln.errors[acceptEMFILE].Add(1)
			l.s.reach(limitDescriptors)
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
			if which, ok := limitOf(errno); ok {
				l.s.reach(which)
			}
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

// admit creates the pair of a new client. If the client has already sent data, which
// is usual with TCP_DEFER_ACCEPT, a connection to a backend is under way when admit
// returns.
func (l *loop) admit(a arrival) {
	p := a.pair()
	p.loop, p.born = l, l.now
	t := l.s.settings()
	if len(t.proxies) > 0 && t.expectsHeader(p) {
		l.admitProxied(p)
		return
	}
	if most := t.maxPerSource; most > 0 && !l.s.sources.enter(p, most) {
		l.s.reach(limitPerSource)
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
		l.fresh.push(p, p.listener.silentUntil(p.born, t.firstByte))
	}
}

// readFirst reads the first bytes if they have arrived; usually a ClientHello. It
// returns false for a client that left without sending any, such as a port check.
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
	p.client.readable = n == len(buf) // else later data is a new edge
	return true
}

// listenerOfFD returns the listener with that descriptor, or nil.
func (l *loop) listenerOfFD(fd int32) *listener {
	for _, ln := range l.listeners {
		if ln.fd == fd {
			return ln
		}
	}
	return nil
}
