package lb

import (
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loop moves the bytes of its pairs. It is one goroutine around one epoll set:
// no goroutine, stack or timer belongs to a connection, an idle one costs what
// its pair struct costs, and to cut, drain or hand over a pair is a function
// call between two events.
//
// Descriptors are closed at the end of a batch of events only, so that an event
// of the batch never finds another connection under its number.
type loop struct {
	s      *Server
	index  int // in Server.loops
	epfd   int
	wakefd int32
	woke   int64 // nanoseconds on the server's clock, at the last wake-up
	now    int64 // the same, a little later where that matters
	buf    []byte
	pipes  pipes

	pairs   []*pair // all of them; a pair knows its index
	closing []int32 // closed at the end of the batch
	again   []*pair // have more to read than one turn allows
	turned  []*pair // the list that again was in the turn before, for reuse

	fresh     queue // nothing was sent yet
	connects  queue // waiting for a backend's answer
	held      queue // no backend answered
	young     queue // have not yet lived for long: cheap to end, not worth a keep-alive
	lingering queue // one side has ended
	doomed    queue // to be cut, a few at a time
	nextScout int64 // when a held pair may try again
	looked    int64 // when those that wait were looked at
	scouts    int   // that do

	listening   bool  // the listeners are watched
	resting     bool  // others do the work (rebalance.go)
	handing     bool  // what it has goes to a new process, which accepts (upgrade.go)
	barred      bool  // they are closed, or about to be
	listenAgain int64 // when they are to be watched again after a shortage; 0 for never
	acceptPause int64 // how long the last shortage was waited for
	newcomers   []arrival
	routing     bool // Accept has returned some
	closed      atomic.Bool

	events  [256]unix.EpollEvent
	count   atomic.Int64 // of pairs, for other goroutines
	busy    atomic.Int64 // nanoseconds in which it did not wait, from one turn in busySample
	turns   uint
	yielded int64 // when it last let others run
	warm    bool  // there were events the last time

	mu      sync.Mutex
	arrived []arrival // routed
	posted  []func()
	emptied []arrival   // what arrived was before, for reuse
	inbox   atomic.Bool // there is something in arrived or posted
	waits   atomic.Bool // whoever posts something has to wake it

	running bool // tcpproxy or run runs it
	stopped bool
	gone    bool // guarded by mu: it takes nothing any more
	done    chan struct{}
}

const (
	bufferSize    = 64 << 10
	turnBytes     = 1 << 20 // of one pair, before the others have their turn: less than a millisecond
	quickTick     = 25 * time.Millisecond
	slowTick      = 250 * time.Millisecond
	yieldEvery    = 9 * time.Millisecond
	busySample    = 8
	keepAliveAge  = 5 * time.Second
	scoutInterval = 100 * time.Millisecond
	doomedPerTick = 125 // 1000 connections are cut within 200 ms, not at once: they all come back
)

func newLoop(s *Server, index int) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(epfd)
		return nil, err
	}
	l := &loop{s: s, index: index, epfd: epfd, wakefd: int32(wakefd), buf: make([]byte, bufferSize), now: s.clock(), done: make(chan struct{})}
	if errno := watch(epfd, unix.EPOLL_CTL_ADD, l.wakefd, unix.EPOLLIN); errno != 0 {
		unix.Close(epfd)
		unix.Close(wakefd)
		return nil, errno
	}
	return l, nil
}

// run is the loop once nobody accepts any more. It returns after stop.
func (l *loop) run() {
	defer close(l.done)
	for !l.stopped {
		l.turn()
	}
	l.mu.Lock()
	l.gone = true // who comes now is refused, and nobody wakes a descriptor that is no longer ours
	l.mu.Unlock()
	l.readInbox()
	l.endAll(endDrain)
	l.closeAll()
	l.pipes.close()
	unix.Close(int(l.wakefd))
	unix.Close(l.epfd)
}

// turn waits for events and deals with a batch of them.
func (l *loop) turn() {
	n := l.wait()
	l.waits.Store(false)
	l.now = l.s.clock()
	l.woke = l.now
	if l.inbox.Load() {
		l.readInbox()
	}
	for _, e := range l.events[:n] {
		l.event(e.Fd, e.Events)
	}
	l.takeTurns()
	l.expire()
	l.closeAll()
	l.yield()
}

// wait waits for events. A loop that has the process to itself and has just had
// some waits the first millisecond without a word to the scheduler. Else, with
// waits of 20 µs and more, the runtime takes the processor away from the loop
// each time, wakes a thread for it, and the loop has to get it back
// (runtime/proc.go: retake, handoffp, exitsyscall): a fifth of its processor time
// at half load. For other goroutines it is as if the loop computed meanwhile, but
// no longer than that.
func (l *loop) wait() (n int) {
	ms := l.fallAsleep()
	if l.turns++; l.turns%busySample == 0 {
		l.busy.Add(busySample * (l.s.clock() - l.woke))
	}
	if l.s.o.Alone && l.warm && ms != 0 {
		if n, _ = epollWait(l.epfd, l.events[:], 1); n > 0 {
			return n
		}
		l.warm = false
	}
	n, err := unix.EpollWait(l.epfd, l.events[:], ms)
	if err != nil && err != syscall.EINTR {
		panic("epoll_wait: " + err.Error()) // the set is ours: nothing but a bug closes it
	}
	l.warm = n > 0
	return max(n, 0)
}

// yield lets the scheduler see that a busy loop is no goroutine to be preempted.
// Else its monitor does so after 10 ms, and stays awake for it, at 20 µs a time:
// 4 % of a busy balancer's processor time (runtime/proc.go: sysmon, retake). Not more
// often than it must: each time the scheduler wakes a thread to look for work
// (goschedImpl), which takes a processor from those who wait for an answer.
func (l *loop) yield() {
	if l.now-l.yielded > int64(yieldEvery) {
		l.yielded = l.now
		runtime.Gosched()
	}
}

// fallAsleep says how long to wait, in milliseconds.
func (l *loop) fallAsleep() int {
	wait := -1
	switch {
	case len(l.again) > 0:
		return 0
	case !l.connects.empty() || !l.held.empty() || !l.doomed.empty() || l.listenAgain != 0:
		wait = int(quickTick / time.Millisecond)
	case !l.fresh.empty() || !l.young.empty() || !l.lingering.empty():
		wait = int(slowTick / time.Millisecond)
	}
	l.waits.Store(true)
	if l.inbox.Load() { // posted before it was known to wait
		l.waits.Store(false)
		return 0
	}
	return wait
}

// post has the loop run f between two batches of events. Any goroutine may call
// it, and it does not wait. It is false, and f is not run, when the loop has
// stopped.
func (l *loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return false
	}
	l.posted = append(l.posted, f)
	l.inbox.Store(true)
	if l.waits.Load() {
		l.wake()
	}
	return true
}

// call is post that waits.
func (l *loop) call(f func()) bool {
	done := make(chan struct{})
	if !l.post(func() { defer close(done); f() }) {
		return false
	}
	<-done
	return true
}

func (l *loop) wake() {
	one := [8]byte{1}
	unix.Write(int(l.wakefd), one[:]) // a full counter wakes as well
}

// route gives the loop clients that it has accepted, once tcpproxy has routed them.
// Any goroutine may call it. It is false, and nothing was kept, when the loop has
// stopped.
func (l *loop) route(clients []arrival) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return false
	}
	l.arrived = append(l.arrived, clients...)
	l.inbox.Store(true)
	if l.waits.Load() {
		l.wake()
	}
	return true
}

// readInbox takes what other goroutines have left.
func (l *loop) readInbox() {
	l.mu.Lock()
	l.inbox.Store(false)
	arrived, posted := l.arrived, l.posted
	l.arrived, l.posted, l.emptied = l.emptied, nil, nil
	l.mu.Unlock()
	for _, a := range arrived {
		l.admit(a)
	}
	clear(arrived)
	l.emptied = arrived[:0]
	for _, f := range posted {
		f()
	}
}

// add counts a pair among the loop's.
func (l *loop) add(p *pair) {
	p.index = len(l.pairs)
	l.pairs = append(l.pairs, p)
	l.count.Store(int64(len(l.pairs)))
}

func (l *loop) forget(p *pair) {
	last := len(l.pairs) - 1
	l.pairs[p.index] = l.pairs[last]
	l.pairs[p.index].index = p.index
	l.pairs[last] = nil
	l.pairs = l.pairs[:last]
	l.count.Store(int64(last))
}

func (l *loop) event(fd int32, events uint32) {
	if fd == l.wakefd {
		var count [8]byte
		unix.Read(int(fd), count[:])
		return
	}
	p := l.s.slots.get(fd)
	if p == nil {
		if ln := l.s.atListener(fd); ln != nil {
			l.accept(ln)
		}
		return // else it ended earlier in this batch
	}
	if p.loop != l {
		return
	}
	switch fd {
	case p.client.fd:
		p.client.note(events)
	case p.server.fd:
		p.server.note(events)
	default:
		l.connectEvent(p, fd, events)
		return
	}
	switch p.phase {
	case fresh:
		l.firstBytes(p)
	case connecting, holding:
		l.clientWhileWaiting(p, events)
	case relaying:
		l.relay(p)
	}
}

// takeTurns goes on with the pairs that had more to read than a turn allows.
func (l *loop) takeTurns() {
	if len(l.again) == 0 {
		return
	}
	turns := l.again
	l.again = l.turned[:0]
	for _, p := range turns {
		p.queued = false
		if p.phase == relaying {
			l.relay(p)
		}
	}
	clear(turns)
	l.turned = turns[:0]
}

func (l *loop) turnLater(p *pair) {
	if !p.queued {
		p.queued = true
		l.again = append(l.again, p)
	}
}

// expire does what time alone brings about.
func (l *loop) expire() {
	for p := l.fresh.due(l.now); p != nil; p = l.fresh.due(l.now) {
		l.s.reject(p.listener, rejectFirstByte)
		l.end(p, endFirstByte)
	}
	for p := l.young.due(l.now); p != nil; p = l.young.due(l.now) {
		l.young.remove(p)
		keepAlive(p)
	}
	for p := l.lingering.due(l.now); p != nil; p = l.lingering.due(l.now) {
		l.end(p, endHalfClose)
	}
	if l.listenAgain != 0 && l.listenAgain <= l.now {
		l.listen()
	}
	if l.now-l.looked >= int64(quickTick) { // these look at all that wait, so not at each wake-up
		l.looked = l.now
		l.expireConnects()
		l.expireHeld()
	}
	for range doomedPerTick {
		p := l.doomed.due(l.now)
		if p == nil {
			break
		}
		l.cut(p)
	}
}

func (l *loop) close(fd int32) {
	l.s.slots.clear(fd)
	l.closing = append(l.closing, fd)
}

func (l *loop) closeAll() {
	for _, fd := range l.closing {
		closeFD(fd)
	}
	l.closing = l.closing[:0]
}

// doom cuts the connections to a backend. Many are cut over a while.
func (l *loop) doom(b *Backend, reason endReason) {
	var all []*pair
	for _, p := range l.pairs {
		if p.backend == b && p.phase == relaying && p.in != &l.doomed {
			all = append(all, p)
		}
	}
	for i, p := range all {
		p.doom = reason
		l.requeue(&l.doomed, p, l.now+int64(i/doomedPerTick)*int64(quickTick))
	}
}

// reprieve is doom taken back, for those that are not yet cut.
func (l *loop) reprieve(b *Backend) {
	for p := range l.doomed.all() {
		switch {
		case p.backend != b:
		case p.client.eof || p.server.eof:
			l.requeue(&l.lingering, p, l.now+l.s.settings().halfClose)
		default:
			l.requeue(&l.young, p, l.now)
		}
	}
}

func (l *loop) requeue(q *queue, p *pair, due int64) {
	if p.in != nil {
		p.in.remove(p)
	}
	q.push(p, due)
}

// stop ends every pair and then the loop.
func (l *loop) stop(reason endReason) {
	l.call(func() {
		l.endAll(reason)
		l.stopped = true
	})
	<-l.done
}

func (l *loop) endAll(reason endReason) {
	for _, p := range slices.Clone(l.pairs) {
		if p.phase == relaying {
			resetOnClose(p.client.fd)
			resetOnClose(p.server.fd)
		}
		l.end(p, reason)
	}
}

// queue is a list of pairs with deadlines. A pair is in one at most. Where all
// wait equally long, the first is due first.
type queue struct{ first, last *pair }

func (q *queue) empty() bool { return q.first == nil }

func (q *queue) push(p *pair, due int64) {
	p.in, p.dueAt, p.prev, p.next = q, due, q.last, nil
	if q.last != nil {
		q.last.next = p
	} else {
		q.first = p
	}
	q.last = p
}

func (q *queue) remove(p *pair) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		q.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		q.last = p.prev
	}
	p.in, p.prev, p.next = nil, nil, nil
}

// due is the first pair, if its time has come.
func (q *queue) due(now int64) *pair {
	if q.first == nil || q.first.dueAt > now {
		return nil
	}
	return q.first
}

// all goes through the queue; the pair at hand may be removed.
func (q *queue) all() func(yield func(*pair) bool) {
	return func(yield func(*pair) bool) {
		for p := q.first; p != nil; {
			next := p.next
			if !yield(p) {
				return
			}
			p = next
		}
	}
}
