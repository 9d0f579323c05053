package lb

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// pair is a client's connection and, later, its connection to a backend. It belongs to
// one loop; only the loop's goroutine touches it.
type pair struct {
	loop     *loop
	client   end
	server   end
	backend  *Backend
	connect  *connectState // while connecting or holding
	listener *listener
	traffic  *traffic // byte counters; nil before there is a backend
	peer     netip.AddrPort
	born     int64
	seen     int64    // last activity
	first    []byte   // bytes the client sent before there was a backend; nil afterwards
	proxied  *proxied // of a client behind a proxy; nil of others
	up, down uint64   // bytes from and to the client

	phase    phase
	doom     endReason
	queued   bool // it is in loop.again
	prompt   bool // the backend's socket sends at once (TCP_NODELAY)
	counted  bool // it is counted in Server.sources
	headless bool // its PROXY header has not arrived whole; first has its beginning
	prodded  bool // the kernel asks its backend for signs of life (evidence.go)

	index      int // position in loop.pairs
	in         *queue
	dueAt      int64
	prev, next *pair
}

type phase uint8

const (
	fresh      phase = iota // accepted; the client has sent nothing, so no backend is contacted
	connecting              // attempts are under way
	holding                 // waiting, since no backend answered
	relaying                // both ends are connected
	ended
)

// end is one of a pair's two sockets.
//
// It is watched edge-triggered, so the loop remembers what the edges reported. A short
// read has drained the socket: later data is a new edge. This saves the read that ends
// in EAGAIN, as in nginx. The exception is a FIN behind the data, which EPOLLRDHUP
// reports.
type end struct {
	fd       int32
	readable bool
	writable bool
	fin      bool   // the peer's FIN, reset or an error has arrived: read until the end
	eof      bool   // the end of the stream was read
	shut     bool   // our FIN was sent
	watched  bool   // watched for room to write, too
	slow     bool   // the last write did not take everything
	bulk     uint8  // consecutive full reads
	out      []byte // bytes read from the other end, not yet written here
	pipe     *pipe  // spliced bytes not yet written here; nil when empty
}

func newEnd(fd int32) end { return end{fd: fd, writable: true} }

// note records an event.
func (e *end) note(events uint32) {
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.readable = true
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.fin = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		e.writable = true
	}
}

// pending reports whether bytes for this end are not written yet.
func (e *end) pending() bool { return len(e.out) > 0 || e.pipe != nil }

// wantWrite watches an end for room to write. Most connections never need it, so it
// starts only when a write would block.
func (l *loop) wantWrite(e *end) {
	e.writable = false
	if e.watched {
		return
	}
	e.watched = true
	watch(l.epfd, unix.EPOLL_CTL_MOD, e.fd, unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLOUT)
}

// firstBytes starts to connect once the client has sent data. A client that leaves
// without sending any, such as a port check, costs no backend anything.
func (l *loop) firstBytes(p *pair) {
	if p.headless {
		l.readHeader(p)
		return
	}
	if p.client.fin {
		var one [1]byte
		if n, _, _ := unix.Recvfrom(int(p.client.fd), one[:], unix.MSG_PEEK); n <= 0 {
			l.end(p, endClient)
			return
		}
	}
	if p.client.readable {
		l.fresh.remove(p)
		l.beginConnect(p)
	}
}

// clientWhileWaiting handles an event of a client without a backend. A client that reset
// its connection is gone. One that sent FIN may still expect an answer while attempts
// are under way, but is not held.
func (l *loop) clientWhileWaiting(p *pair, events uint32) {
	if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 || p.phase == holding && p.client.fin {
		l.end(p, endClient)
	}
}

// relay moves all bytes that can be moved now, both ways, and ends the pair when both
// streams have ended.
func (l *loop) relay(p *pair) {
	p.seen = l.now
	l.lookLater(p)
	if !l.pump(p, &p.client, &p.server, &p.up) || !l.pump(p, &p.server, &p.client, &p.down) {
		return
	}
	if !p.client.eof && !p.server.eof {
		return
	}
	if p.client.eof && p.server.eof && !p.client.pending() && !p.server.pending() {
		l.end(p, p.doneBy())
		return
	}
	l.halfClose(&p.client, &p.server)
	l.halfClose(&p.server, &p.client)
	if p.in != &l.doomed {
		l.requeue(&l.lingering, p, l.now+l.s.settings().halfClose)
	}
}

// doneBy tells which side ended its stream first.
func (p *pair) doneBy() endReason {
	if p.client.shut {
		return endBackend
	}
	return endClient
}

// halfClose passes on the end of a stream once all bytes before it are written.
func (l *loop) halfClose(src, dst *end) {
	if src.eof && !dst.shut && !dst.pending() {
		dst.shut = true
		shutdownWrite(dst.fd)
	}
}

// pump moves bytes one way until the source has no more, the destination takes no more,
// or the turn is over. It returns false when the pair has ended.
func (l *loop) pump(p *pair, src, dst *end, count *uint64) bool {
	if dst.pending() && !l.flush(p, dst) {
		return p.phase == relaying
	}
	for budget := turnBytes; budget > 0; budget -= bufferSize {
		if !src.readable || src.eof {
			return true
		}
		if src.bulk < bulkReads || !l.canSplice(src) {
			if !l.copy(p, src, dst, count) {
				return p.phase == relaying
			}
		} else if budget -= pipeChunk; !l.splice(p, src, dst, count) {
			return p.phase == relaying
		}
	}
	l.turnLater(p)
	return true
}

// copy reads once and writes the bytes. It returns false when this direction is blocked
// or the pair has ended.
func (l *loop) copy(p *pair, src, dst *end, count *uint64) bool {
	buf := l.buf
	if dst.slow {
		buf = buf[:bufferSize/4] // bytes that a slow reader does not take stay in memory
	}
	n, errno := recv(src.fd, buf)
	switch {
	case errno == syscall.EAGAIN:
		src.readable, src.bulk = false, 0
		return false
	case errno == syscall.EINTR:
		return true
	case errno != 0:
		l.endBroken(p, src)
		return false
	case n == 0:
		src.readable, src.eof = false, true
		return false
	case n < len(buf):
		src.readable, src.bulk = src.fin, 0
	case src.bulk < bulkReads:
		src.bulk++
	}
	*count += uint64(n)
	p.traffic.count(src == &p.client, n)
	if dst == &p.server && !p.prompt { // the first bytes, sent in connected, had nothing to wait for
		p.prompt = true
		setInt(dst.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return l.write(p, dst, buf[:n])
}

// write sends b and keeps the bytes that dst does not take. It returns false when bytes
// are kept or the pair has ended.
func (l *loop) write(p *pair, dst *end, b []byte) bool {
	n, errno := send(dst.fd, b)
	for errno == syscall.EINTR {
		n, errno = send(dst.fd, b)
	}
	switch {
	case errno == syscall.EAGAIN:
		n = 0
	case errno != 0:
		l.endBroken(p, dst)
		return false
	case n == len(b):
		dst.slow = false
		return true
	}
	dst.out = append(dst.out[:0], b[n:]...)
	dst.slow = true
	l.wantWrite(dst)
	return false
}

// flush writes pending bytes. It returns false when some are still pending or the pair
// has ended.
func (l *loop) flush(p *pair, dst *end) bool {
	if !dst.writable {
		return false
	}
	if dst.pipe != nil {
		return l.drainPipe(p, dst)
	}
	n, errno := send(dst.fd, dst.out)
	switch {
	case errno == syscall.EAGAIN:
		l.wantWrite(dst)
		return false
	case errno == syscall.EINTR:
		l.turnLater(p)
		return false
	case errno != 0:
		l.endBroken(p, dst)
		return false
	case n < len(dst.out):
		dst.out = append(dst.out[:0], dst.out[n:]...)
		l.wantWrite(dst)
		return false
	}
	dst.out = nil // an idle pair holds no buffer
	return true
}

// endBroken ends a pair after an error on end e. The other end gets a reset, as it would
// without a balancer.
func (l *loop) endBroken(p *pair, e *end) {
	other, reason := &p.client, endBackend
	if e == &p.client {
		other, reason = &p.server, endClient
	}
	resetOnClose(other.fd)
	l.end(p, reason)
}

// cut ends a connection whose backend is gone. The client sees an orderly end; the dead
// side gets no more data.
func (l *loop) cut(p *pair) {
	resetOnClose(p.server.fd)
	l.end(p, p.doom)
}

// end closes and counts a pair.
func (l *loop) end(p *pair, reason endReason) {
	if p.phase == ended {
		return
	}
	if p.in != nil {
		p.in.remove(p)
	}
	l.endConnect(p)
	l.close(p.client.fd)
	if p.phase == relaying {
		l.close(p.server.fd)
		l.pipes.put(p.client.pipe)
		l.pipes.put(p.server.pipe)
		p.backend.active.Add(-1)
	}
	l.drop(p)
	l.s.ended(p, reason, l.now)
	p.phase = ended
}

// keepAlive makes the kernel detect a vanished peer. The client's options are set, too: one that
// an older kthwd accepted has that one's. It reports false, and changes nothing, while the backend
// owes answers to probes: by the new options these may be too many already (tcp_timer.c:
// tcp_keepalive_timer), though the next one would be answered.
func keepAlive(p *pair) bool {
	if info, err := unix.GetsockoptTCPInfo(int(p.server.fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Probes > 0 {
		return false
	}
	for _, e := range []*end{&p.server, &p.client} {
		// First: the kernel counts TCP_KEEPIDLE from the last packet only on a socket that has this
		// already, and from now otherwise (tcp.c: tcp_sock_set_keepidle_locked, tcp_set_keepalive).
		setInt(e.fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		for _, o := range keepAliveOptions {
			setInt(e.fd, o.level, o.name, o.value)
		}
	}
	return true
}

type socketOption struct {
	level, name int
	value       int32
}

// keepAliveOptions define when a peer has vanished to which no data is on its way: after 30 s
// without an answer, seven probes 2 s apart that begin after 16 s of silence. See silence.go for
// the others, and for the user timeout: an older kthwd may have set one on a connection that it
// hands over, and with one the kernel does not count the probes (tcp_timer.c: tcp_keepalive_timer).
var keepAliveOptions = []socketOption{
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 16},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 2},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 7},
	{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0},
}
