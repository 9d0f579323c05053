package lb

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loop moves the bytes of its pairs. It is one goroutine around one epoll set: a
// connection has no goroutine, stack or timer of its own, an idle one costs no more than
// its pair struct, and cutting, draining or handing over a pair is a function call
// between two events.
//
// Descriptors are closed only at the end of a batch of events, so that no event of the
// batch refers to a new connection with a reused number.
type loop struct {
	s      *Server
	index  int // position in Server.loops
	epfd   int
	wakefd int32
	woke   int64 // time of the last wake-up, in nanoseconds on the server's clock
	now    int64 // current time, refreshed after the wake-up where that matters
	buf    []byte
	pipes  pipes

	pairs   []*pair // all pairs; pair.index is the position
	closing []int32 // descriptors to close at the end of the batch
	again   []*pair // pairs with more to read than one turn allows
	turned  []*pair // the previous list of again, for reuse

	fresh      queue // clients that have sent nothing
	connects   queue // pairs waiting for a backend's answer
	held       queue // pairs that no backend answered
	young      queue // pairs too short-lived so far to be worth a keep-alive
	trafficked queue // pairs that had traffic lately, to look at (silence.go)
	lingering  queue // pairs with one side ended
	doomed     queue // pairs to cut, a few at a time
	nextScout  int64 // when a held pair may try again
	expired    int64 // last run of expireConnects and expireHeld
	asked      int64 // when it began to wait for the events of this turn, or a little before
	scouts     int   // held pairs that are trying again

	listeners   []*listener
	accepting   bool  // the listeners are watched
	resting     bool  // other loops do the work (rebalance.go)
	handingOver bool  // its pairs go to a new process, which accepts (upgrade.go)
	barred      bool  // the listeners are closed, or about to be
	acceptAgain int64 // when to accept again after a shortage; 0 when there is none
	acceptPause int64 // length of the last pause for a shortage
	newcomers   []arrival
	routing     bool // Accept has just returned clients
	closed      atomic.Bool

	events  [256]unix.EpollEvent
	count   atomic.Int64 // number of pairs, for other goroutines
	busy    atomic.Int64 // nanoseconds spent working, estimated from one turn in busySample
	turns   uint
	yielded int64 // when it last yielded the processor
	warm    bool  // the last wait returned events

	mu      sync.Mutex
	arrived []arrival // routed clients
	posted  []func()
	emptied []arrival   // the previous list of arrived, for reuse
	inbox   atomic.Bool // arrived or posted is not empty
	waits   atomic.Bool // the loop waits, so that a post must wake it

	running bool // started, by tcpproxy or run
	stopped bool
	gone    bool // guarded by mu: the loop accepts no more work
	done    chan struct{}
}

const (
	bufferSize    = 64 << 10
	turnBytes     = 512 << 10 // of one pair before the others have their turn: less than half a millisecond
	quickTick     = 25 * time.Millisecond
	slowTick      = 250 * time.Millisecond
	yieldEvery    = 9 * time.Millisecond
	busySample    = 8
	keepAliveAge  = 5 * time.Second
	scoutInterval = 100 * time.Millisecond
	doomedPerTick = 125 // 1000 connections are cut over 200 ms, not at once, because all their clients reconnect
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

// run runs the loop once tcpproxy no longer does. It returns after stop.
func (l *loop) run() {
	defer close(l.done)
	for !l.stopped {
		l.turn()
	}
	l.mu.Lock()
	l.gone = true // later work is refused, and the closed wakefd is not written to
	l.mu.Unlock()
	l.readInbox()
	l.endAll(endDrain)
	l.closeAll()
	l.pipes.close()
	unix.Close(int(l.wakefd))
	unix.Close(l.epfd)
}

// turn waits for events and handles one batch of them.
func (l *loop) turn() {
	l.asked = l.now
	n := l.wait()
	l.waits.Store(false)
	l.now = l.s.clock()
	l.woke = l.now
	if l.inbox.Load() {
		l.readInbox()
	}
	due := len(l.again) // the pairs that events add have had their turn
	for _, e := range l.events[:n] {
		l.event(e.Fd, e.Events)
	}
	l.takeTurns(due)
	l.expire()
	l.closeAll()
	l.yield()
}

// wait waits for events. With Options.Alone, a loop that has just had events waits the
// first millisecond without telling the scheduler. Otherwise, at each wait of 20 µs or
// more, the runtime takes the processor away from the loop and wakes a thread for it,
// and the loop has to get it back (runtime/proc.go: retake, handoffp, exitsyscall): a
// fifth of its processor time at half load. To other goroutines the loop appears to
// compute for that millisecond.
func (l *loop) wait() (n int) {
	ms := l.prepareWait()
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
	if err != nil && !errors.Is(err, syscall.EINTR) {
		panic("epoll_wait: " + err.Error()) // the epoll set is the loop's own: only a bug closes it
	}
	l.warm = n > 0
	return max(n, 0)
}

// yield calls the scheduler, so that a busy loop is not preempted. Otherwise the
// runtime's monitor preempts it after 10 ms and stays awake for that, polling every
// 20 µs: 4 % of a busy balancer's processor time (runtime/proc.go: sysmon, retake). It
// yields no more often than necessary, because each time the scheduler wakes a thread to
// look for work (goschedImpl), which takes a processor from waiting clients.
func (l *loop) yield() {
	if l.now-l.yielded > int64(yieldEvery) {
		l.yielded = l.now
		runtime.Gosched()
	}
}

// prepareWait returns how long to wait for events, in milliseconds; -1 for no limit.
func (l *loop) prepareWait() int {
	wait := -1
	switch {
	case len(l.again) > 0:
		return 0
	case !l.connects.empty() || !l.held.empty() || !l.doomed.empty() || l.acceptAgain != 0:
		wait = int(quickTick / time.Millisecond)
	case !l.fresh.empty() || !l.young.empty() || !l.lingering.empty():
		wait = int(slowTick / time.Millisecond)
	case !l.trafficked.empty():
		wait = int(max(slowTick, time.Duration(l.trafficked.first.dueAt-l.now)) / time.Millisecond)
	}
	l.waits.Store(true)
	if l.inbox.Load() { // posted before waits was set
		l.waits.Store(false)
		return 0
	}
	return wait
}

// post makes the loop run f between two batches of events, and does not wait for it. Any
// goroutine may call it. It returns false, and f does not run, when the loop has
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

// call is post, but waits until f has run.
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
	unix.Write(int(l.wakefd), one[:]) // a failed write means a full counter, which wakes the loop as well
}

// route returns accepted clients to the loop once tcpproxy has routed them. Any
// goroutine may call it. It returns false, and keeps nothing, when the loop has stopped.
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

// readInbox handles the clients and functions left by other goroutines.
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

// add adds a pair to the loop's list.
func (l *loop) add(p *pair) {
	p.index = len(l.pairs)
	l.pairs = append(l.pairs, p)
	l.count.Store(int64(len(l.pairs)))
}

// drop removes a pair from the loop's list.
func (l *loop) drop(p *pair) {
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
		if ln := l.listenerOfFD(fd); ln != nil {
			l.accept(ln)
		}
		return // a pair that ended earlier in this batch
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
		if !p.queued { // otherwise takeTurns continues it: once in a turn, however fast its data comes
			l.relay(p)
		}
	}
}

// takeTurns continues the first due pairs of those that had more to read than one turn
// allows.
func (l *loop) takeTurns(due int) {
	if due == 0 {
		return
	}
	turns := l.again
	l.again = append(l.turned[:0], turns[due:]...)
	for _, p := range turns[:due] {
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

// expire handles everything whose time has come.
func (l *loop) expire() {
	for p := l.fresh.due(l.now); p != nil; p = l.fresh.due(l.now) {
		l.s.reject(p.listener, rejectFirstByte)
		l.end(p, endFirstByte)
	}
	for p := l.young.due(l.now); p != nil; p = l.young.due(l.now) {
		l.young.remove(p)
		if !keepAlive(p) {
			l.young.push(p, l.now+int64(time.Second))
			continue
		}
		l.lookLater(p)
	}
	for p := l.trafficked.due(l.now); p != nil; p = l.trafficked.due(l.now) {
		l.look(p)
	}
	for p := l.lingering.due(l.now); p != nil; p = l.lingering.due(l.now) {
		l.end(p, endHalfClose)
	}
	if l.acceptAgain != 0 && l.acceptAgain <= l.now {
		l.startAccepting()
	}
	if l.now-l.expired >= int64(quickTick) { // both visit every waiting pair, so they do not run at each wake-up
		l.expired = l.now
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

// doom schedules the connections to a backend to be cut, doomedPerTick at a time.
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

// reprieve undoes doom for the connections not cut yet.
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

// stop ends every pair, then the loop, and waits for it.
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

// queue is a list of pairs with deadlines. A pair is in at most one queue. Where all
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

// due returns the first pair if its deadline has passed, else nil.
func (q *queue) due(now int64) *pair {
	if q.first == nil || q.first.dueAt > now {
		return nil
	}
	return q.first
}

// all iterates over the queue; the current pair may be removed.
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
