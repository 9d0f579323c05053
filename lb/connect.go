package lb

import (
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connectState is the state of a pair that has no backend yet: concurrent attempts,
// each to a different backend. The first one answered wins.
type connectState struct {
	began    int64 // start of this round
	heldFrom int64 // start of holding; 0 when never held
	tries    [3]attempt
	tried    []*Backend // backends tried in this round
	scout    bool       // it tries on behalf of all held pairs

	few [4]*Backend // initial storage of tried
}

// connectStates recycles the states: a connection needs one for a moment only.
var connectStates = sync.Pool{New: func() any { return new(connectState) }}

func newConnectState(began int64) *connectState {
	c := connectStates.Get().(*connectState)
	c.began = began
	c.tried = c.few[:0]
	return c
}

// release returns the state to the pool. No attempt may be under way.
func (c *connectState) release() {
	*c = connectState{}
	connectStates.Put(c)
}

// attempt is one connection attempt under way. The zero value means none.
type attempt struct {
	to    *Backend
	fd    int32
	began int64
	hedge bool // made because an earlier one was slow
}

func (c *connectState) flying() (n int) {
	for i := range c.tries {
		if c.tries[i].to != nil {
			n++
		}
	}
	return n
}

// newest is the start of the latest attempt still under way.
func (c *connectState) newest() (began int64) {
	for i := range c.tries {
		if c.tries[i].to != nil {
			began = max(began, c.tries[i].began)
		}
	}
	return began
}

// beginConnect looks for a backend for a client that has none.
func (l *loop) beginConnect(p *pair) {
	if p.connect == nil {
		p.connect = newConnectState(l.now)
	}
	p.connect.began, p.connect.tried = l.now, p.connect.tried[:0]
	p.phase = connecting
	l.requeue(&l.connects, p, 0)
	if !l.tryNext(p, l.now, false) {
		l.hold(p)
	}
}

// tryNext starts an attempt to the best backend not tried in this round. It returns
// false when there is none.
func (l *loop) tryNext(p *pair, now int64, hedge bool) bool {
	c := p.connect
	at := slices.IndexFunc(c.tries[:], func(a attempt) bool { return a.to == nil })
	if at < 0 {
		return false
	}
	for {
		b := l.s.choose(p.peer.Addr(), c.tried)
		if b == nil {
			return false
		}
		if len(c.tried) > 0 {
			b.retries.Add(1)
		}
		c.tried = append(c.tried, b)
		fd, errno := l.start(p, b)
		if errno == 0 {
			b.connecting.Add(1)
			c.tries[at] = attempt{to: b, fd: fd, began: now, hedge: hedge}
			return true
		}
		b.connectFailed(errno)
	}
}

// start starts one connection to b.
func (l *loop) start(p *pair, b *Backend) (int32, syscall.Errno) {
	to := b.addr.Load()
	fd, errno := streamSocket(to.family())
	if errno == unix.EMFILE && p.connect.flying() == 0 {
		fd, errno = l.s.reserve.socket(to.family())
	}
	if errno != 0 {
		return -1, errno
	}
	if !l.s.slots.set(fd, p) {
		closeFD(fd)
		return -1, unix.EMFILE
	}
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) // see listener.prepare; here the client's first bytes carry the last ACK of the handshake
	if errno = l.s.connectFrom(fd, to); errno == unix.EINPROGRESS {
		errno = 0
	}
	if errno == 0 {
		errno = watch(l.epfd, unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP)
	}
	if errno != 0 {
		l.s.slots.clear(fd)
		closeFD(fd)
	}
	return fd, errno
}

// connectEvent handles an event on an attempt's socket.
func (l *loop) connectEvent(p *pair, fd int32, events uint32) {
	if p.connect == nil {
		return
	}
	for i := range p.connect.tries {
		a := &p.connect.tries[i]
		if a.to == nil || a.fd != fd {
			continue
		}
		if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			l.attemptFailed(p, a, socketError(fd))
			l.continueConnect(p)
		} else if events&unix.EPOLLOUT != 0 {
			l.connected(p, a, events)
		}
		return
	}
}

// connected joins the client to the first backend that answered.
func (l *loop) connected(p *pair, a *attempt, events uint32) {
	won, c := *a, p.connect
	b := won.to
	a.to = nil
	b.connecting.Add(-1)
	b.connected(time.Duration(l.now-won.began), won.hedge)
	l.endConnect(p)
	p.connect = nil
	p.server = newEnd(won.fd)
	p.server.watched = true
	p.server.note(events)
	p.backend, p.phase = b, relaying
	p.traffic = b.trafficOf(p.listener, l)
	b.active.Add(1)
	b.total.Add(1)
	l.requeue(&l.young, p, l.now+int64(keepAliveAge))
	if b.drained.Load() { // the drain ended during the attempt
		p.doom = endRemoved
		l.requeue(&l.doomed, p, l.now)
	}
	first := p.first
	if header := l.s.proxyHeader(p); header != nil {
		first = append(header, first...)
	}
	if len(first) > 0 {
		p.up += uint64(len(p.first))
		p.traffic.count(true, len(p.first))
		p.first = nil
		if !l.write(p, &p.server, first) && p.phase != relaying {
			c.release()
			return
		}
	}
	wasHeld := c.heldFrom != 0
	c.release()
	if wasHeld {
		l.releaseHeld()
	}
	l.relay(p)
}

// attemptFailed ends an attempt that was refused or took too long.
func (l *loop) attemptFailed(p *pair, a *attempt, errno syscall.Errno) {
	b := a.to
	l.close(a.fd)
	a.to = nil
	b.connecting.Add(-1)
	b.connectFailed(errno)
	if a.hedge {
		b.hedgeLost.Add(1)
	}
}

// continueConnect tries the next backend once no attempt is under way.
func (l *loop) continueConnect(p *pair) {
	if p.connect.flying() > 0 {
		return
	}
	if l.now-p.connect.began >= l.s.settings().connectBudget || !l.tryNext(p, l.now, false) {
		l.hold(p)
	}
}

// expireConnects abandons attempts that took too long, and hedges slow ones. An attempt is slow
// if its answer was not there when the loop last asked for events: one that is there, but that
// the loop has not seen because it had no processor, says nothing about the backend.
func (l *loop) expireConnects() {
	t := l.s.settings()
	for p := range l.connects.all() {
		c := p.connect
		over := l.asked-c.began >= t.connectBudget
		for i := range c.tries {
			if a := &c.tries[i]; a.to != nil && (over || l.asked-a.began >= t.connectTimeout) {
				l.attemptFailed(p, a, unix.ETIMEDOUT)
			}
		}
		switch n := c.flying(); {
		case n == 0:
			l.continueConnect(p)
		case t.hedgeAfter > 0 && n < len(c.tries) && l.asked-c.newest() >= t.hedgeAfter:
			slow := c.tries
			if l.tryNext(p, l.now, true) {
				suspectSlow(slow)
			}
		}
	}
}

// suspectSlow makes backends that have not answered yet be checked, and be avoided
// until a check passes, so that the next client does not wait as long.
func suspectSlow(tries [3]attempt) {
	for _, a := range tries {
		if a.to != nil {
			a.to.suspectSlow()
		}
	}
}

// endConnect abandons all attempts under way.
func (l *loop) endConnect(p *pair) {
	c := p.connect
	if c == nil {
		return
	}
	for i := range c.tries {
		a := &c.tries[i]
		if a.to == nil {
			continue
		}
		l.close(a.fd)
		a.to.connecting.Add(-1)
		if a.hedge {
			a.to.hedgeLost.Add(1)
		}
		a.to = nil
	}
	if c.scout {
		c.scout = false
		l.scouts--
	}
	if p.phase == holding {
		l.s.heldNow.Add(-1)
	}
}

// hold keeps a client that no backend answered, for a while: a refused client would
// only come back.
func (l *loop) hold(p *pair) {
	c := p.connect
	if c.scout {
		c.scout = false
		l.scouts--
	}
	if c.heldFrom == 0 {
		c.heldFrom = l.now
	}
	t := l.s.settings()
	until := c.heldFrom + t.hold
	if p.client.fin { // it has left; no further event will come
		l.end(p, endClient)
		return
	}
	full := t.maxHeld > 0 && l.s.heldNow.Load() >= t.maxHeld
	if full && l.now < until {
		l.s.reach(limitHeld)
	}
	if l.now >= until || full || t.maxHeld == 0 {
		l.s.reject(p.listener, rejectNoBackend)
		l.end(p, endNoBackend)
		return
	}
	l.s.heldNow.Add(1)
	p.phase = holding
	l.requeue(&l.held, p, until)
}

// expireHeld closes clients held for too long, and lets one of the others try.
func (l *loop) expireHeld() {
	for p := range l.held.all() {
		if p.dueAt <= l.now {
			l.s.reject(p.listener, rejectNoBackend)
			l.end(p, endNoBackend)
		}
	}
	if l.held.empty() || l.scouts > 0 || l.now < l.nextScout {
		return
	}
	l.nextScout = l.now + int64(scoutInterval)
	p := l.held.first
	p.connect.scout = true
	l.scouts++
	l.retryHeld(p)
}

// releaseHeld makes all held clients try again: a backend has answered.
func (l *loop) releaseHeld() {
	for _, p := range slices.Collect(l.held.all()) { // a copy: clients that fail again are held again
		l.retryHeld(p)
	}
}

func (l *loop) retryHeld(p *pair) {
	l.s.heldNow.Add(-1)
	p.phase = connecting
	l.beginConnect(p)
}
