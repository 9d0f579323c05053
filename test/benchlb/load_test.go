package benchlb

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// order is the task of the load generator.
type order struct {
	Kind    string // requests, connections, bulk, paced, idle, rate or burst
	Address string
	Clients int
	Rate    float64       // requests per second, for rate; bytes per second of all clients, for paced
	Warm    time.Duration // time before the measurement
	Time    time.Duration // length of the measurement
}

// outcome is the result of a measurement.
type outcome struct {
	Done    float64 // exchanges; for bulk and paced, bytes
	Failed  int     // connections that failed
	Reason  string  // of the first failure
	Seconds float64
	P50     float64 // µs, for rate and burst
	P99     float64
	Late    float64 // share of the requests of rate that had to wait for a free connection
}

// load generates load in one thread.
type load struct {
	*loop
	order
	to       *unix.RawSockaddrInet4
	request  [requestSize]byte
	conns    []loadConn // by descriptor
	outcome  outcome
	counting bool
	counted  time.Time // begin of the measurement
	buffer   [64 << 10]byte

	idle      []int32 // connections of rate without a request, the longest idle first
	latencies []int64 // ns
}

type loadConn struct {
	got   int // bytes of the response so far
	sent  bool
	begin time.Time
}

// runLoad is the helper: it prints "begin" at the start of the measurement, and "end" with
// the outcome.
func runLoad(args []string) error {
	l := &load{}
	if err := json.Unmarshal([]byte(args[0]), &l.order); err != nil {
		return err
	}
	var err error
	if l.loop, err = newLoop(); err != nil {
		return err
	}
	if l.to, err = address(l.Address); err != nil {
		return err
	}
	l.conns = make([]loadConn, 1<<17)
	l.request[0] = kindExchange
	// The default slack of 50 µs would be part of every latency.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := map[string]func() error{
		"requests": l.requests, "connections": l.connections, "bulk": l.bulk, "paced": l.paced, "idle": l.idling, "rate": l.rate, "burst": l.burst,
	}[l.Kind](); err != nil {
		return err
	}
	out, err := json.Marshal(l.outcome)
	fmt.Printf("end %s\n", out)
	return err
}

func (l *load) fail(fd int, err error) {
	l.outcome.Failed++
	if l.outcome.Reason == "" {
		l.outcome.Reason = fmt.Sprint(err)
	}
	closeFD(fd)
}

// begin opens a connection and sends the first request as soon as possible.
func (l *load) begin() error {
	fd, err := connect(l.to)
	if err != nil {
		return err
	}
	l.conns[fd] = loadConn{}
	if n, err := write(fd, l.request[:]); n == requestSize {
		l.conns[fd].sent = true
		return l.add(fd, unix.EPOLLIN)
	} else if !again(err) {
		l.fail(fd, fmt.Errorf("first write: %w", err))
		return l.begin()
	}
	return l.add(fd, unix.EPOLLIN|unix.EPOLLOUT)
}

// step advances a connection and reports whether its response is complete.
func (l *load) step(e unix.EpollEvent) (complete bool, err error) {
	fd := int(e.Fd)
	c := &l.conns[fd]
	if !c.sent {
		if n, err := write(fd, l.request[:]); n != requestSize {
			return false, fmt.Errorf("first write: %w", err)
		}
		c.sent = true
		return false, l.modify(fd, unix.EPOLLIN)
	}
	n, err := read(fd, l.buffer[:])
	if again(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read: %w", err)
	}
	if n == 0 {
		return false, fmt.Errorf("closed after %d bytes of the response: %w", c.got, io.ErrUnexpectedEOF)
	}
	c.got += n
	if c.got > responseSize {
		return false, fmt.Errorf("response of %d bytes", c.got)
	}
	return c.got == responseSize, nil
}

// again sends the next request on a connection.
func (l *load) again(fd int) error {
	l.conns[fd].got = 0
	if n, err := write(fd, l.request[:]); n != requestSize {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// run waits for events and handles them until the time is over.
func (l *load) run(handle func(unix.EpollEvent) error) error {
	start := time.Now()
	for {
		events, err := l.wait(100 * time.Millisecond)
		if err != nil {
			return err
		}
		if l.over(start) {
			return nil
		}
		for _, e := range events {
			if err := handle(e); err != nil {
				return err
			}
		}
	}
}

// over begins the measurement after the warm-up, and reports its end.
func (l *load) over(start time.Time) bool {
	now := time.Now()
	switch {
	case !l.counting && now.Sub(start) >= l.Warm:
		l.counting, l.counted = true, now
		fmt.Println("begin")
	case l.counting && now.Sub(l.counted) >= l.Time:
		l.outcome.Seconds = now.Sub(l.counted).Seconds()
		return true
	}
	return false
}

func (l *load) count(n int) {
	if l.counting {
		l.outcome.Done += float64(n)
	}
}

// requests: each client sends the next request after the response.
func (l *load) requests() error {
	for range l.Clients {
		if err := l.begin(); err != nil {
			return err
		}
	}
	return l.run(func(e unix.EpollEvent) error {
		complete, err := l.step(e)
		if complete {
			l.count(1)
			err = l.again(int(e.Fd))
		}
		if err != nil {
			l.fail(int(e.Fd), err)
			return l.begin()
		}
		return nil
	})
}

// connections: each client closes the connection after the response and opens
// the next one.
func (l *load) connections() error {
	for range l.Clients {
		if err := l.begin(); err != nil {
			return err
		}
	}
	return l.run(func(e unix.EpollEvent) error {
		complete, err := l.step(e)
		switch {
		case complete:
			l.count(1)
			closeFD(int(e.Fd))
			return l.begin()
		case err != nil:
			l.fail(int(e.Fd), err)
			return l.begin()
		}
		return nil
	})
}

// bulk: each client receives as much as it can.
func (l *load) bulk() error {
	l.request[0] = kindBulk
	for range l.Clients {
		if err := l.begin(); err != nil {
			return err
		}
	}
	return l.run(func(e unix.EpollEvent) error {
		if !l.conns[e.Fd].sent {
			_, err := l.step(e)
			return err
		}
		n, err := discard(int(e.Fd), 4<<20)
		if again(err) {
			return nil
		}
		if err != nil || n == 0 {
			return fmt.Errorf("bulk stream ended: %d, %w", n, err)
		}
		l.count(n)
		return nil
	})
}

// paced: all clients together receive Rate bytes a second, in pulses of a millisecond.
func (l *load) paced() error {
	const pulse, owed = time.Millisecond, 10 * time.Millisecond
	l.request[0] = kindBulk
	for range l.Clients {
		if err := l.begin(); err != nil {
			return err
		}
	}
	var streams []int
	due, start := 0.0, time.Now()
	for paid := start; !l.over(start); {
		events, err := l.wait(pulse)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := l.mute(e); err != nil {
				return err
			}
			streams = append(streams, int(e.Fd))
		}
		now := time.Now()
		due = min(due+l.Rate*now.Sub(paid).Seconds(), l.Rate*owed.Seconds())
		paid = now
		share := int(due) / l.Clients
		for _, fd := range streams {
			n, err := discard(fd, share)
			if again(err) {
				continue
			}
			if err != nil || n == 0 {
				return fmt.Errorf("paced stream ended: %d, %w", n, err)
			}
			l.count(n)
			due -= float64(n)
		}
	}
	return nil
}

// mute takes no more events of a stream, whose first byte has come.
func (l *load) mute(e unix.EpollEvent) error {
	if !l.conns[e.Fd].sent || e.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		return fmt.Errorf("paced stream: events %#x", e.Events)
	}
	return l.modify(int(e.Fd), 0)
}

// idling opens all connections, at most 64 at a time before their response, and
// holds them until standard input ends. None may be closed until then.
func (l *load) idling() error {
	opened, pending, finished := 0, 0, 0
	start := time.Now()
	for finished < l.Clients {
		for opened < l.Clients && pending < 64 {
			if err := l.begin(); err != nil {
				return err
			}
			opened++
			pending++
		}
		events, err := l.wait(time.Second)
		if err != nil {
			return err
		}
		for _, e := range events {
			complete, err := l.step(e)
			if err != nil {
				l.fail(int(e.Fd), err)
			}
			if complete || err != nil {
				finished++
				pending--
			}
		}
		if time.Since(start) > time.Minute {
			return fmt.Errorf("%d of %d connections have a response after a minute", finished, l.Clients)
		}
	}
	fmt.Println("begin")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	events, err := l.wait(0)
	if len(events) > 0 {
		l.outcome.Failed += len(events)
		l.outcome.Reason = "closed while idle"
	}
	l.outcome.Done, l.outcome.Seconds = float64(finished), time.Since(start).Seconds()
	return err
}

// burst opens all connections at once, makes one exchange on each, and closes it. A
// latency is the time from the connect to the response.
func (l *load) burst() error {
	fmt.Println("begin")
	start := time.Now()
	for range l.Clients {
		at := time.Now()
		fd, err := connect(l.to)
		if err != nil {
			return err
		}
		l.conns[fd] = loadConn{begin: at}
		if err := l.add(fd, unix.EPOLLIN|unix.EPOLLOUT); err != nil {
			return err
		}
	}
	for len(l.latencies)+l.outcome.Failed < l.Clients {
		if time.Since(start) > time.Minute {
			return fmt.Errorf("%d of %d connections have a response after a minute", len(l.latencies), l.Clients)
		}
		events, err := l.wait(time.Second)
		if err != nil {
			return err
		}
		for _, e := range events {
			complete, err := l.step(e)
			switch {
			case err != nil:
				l.fail(int(e.Fd), err)
			case complete:
				l.latencies = append(l.latencies, int64(time.Since(l.conns[e.Fd].begin)))
				closeFD(int(e.Fd))
			}
		}
	}
	l.outcome.Seconds, l.outcome.Done = time.Since(start).Seconds(), float64(len(l.latencies))
	slices.Sort(l.latencies)
	l.outcome.P50, l.outcome.P99 = percentile(l.latencies, 50), percentile(l.latencies, 99)
	return nil
}

// rate sends requests at a fixed rate, each on the connection that has been idle the
// longest. A request due while all are busy is timed from when it was due.
func (l *load) rate() error {
	for range l.Clients {
		if err := l.begin(); err != nil {
			return err
		}
	}
	if err := l.allIdle(); err != nil {
		return err
	}
	l.latencies = make([]int64, 0, int(l.Rate*l.Time.Seconds())+1000)
	gap := time.Duration(float64(time.Second) / l.Rate)
	start := time.Now()
	counted, next, late, sent, blocked := start.Add(l.Warm), start, 0, 0, false
	end := counted.Add(l.Time)
	for {
		now := time.Now()
		if !l.counting && now.After(counted) {
			l.counting = true
			fmt.Println("begin")
		}
		if now.After(end) {
			break
		}
		for !next.After(now) && len(l.idle) > 0 {
			if err := l.sendDue(next, blocked); err != nil {
				return err
			}
			sent, next = sent+1, next.Add(gap)
			if blocked {
				late++
			}
			blocked = false
		}
		blocked = !next.After(now)
		timeout := time.Until(next)
		if blocked {
			timeout = 100 * time.Millisecond // until a connection is free
		}
		events, err := l.wait(max(0, timeout))
		if err != nil {
			return err
		}
		for _, e := range events {
			complete, err := l.step(e)
			if err != nil {
				return err
			}
			if complete {
				l.responded(e.Fd)
			}
		}
	}
	l.outcome.Seconds = l.Time.Seconds()
	l.outcome.Done = float64(len(l.latencies))
	l.outcome.Late = float64(late) / float64(max(1, sent))
	slices.Sort(l.latencies)
	l.outcome.P50, l.outcome.P99 = percentile(l.latencies, 50), percentile(l.latencies, 99)
	return nil
}

// sendDue sends a request on the connection that has been idle the longest.
func (l *load) sendDue(due time.Time, blocked bool) error {
	fd := l.idle[0]
	l.idle = append(l.idle[:0], l.idle[1:]...)
	if !blocked {
		due = time.Now() // delays of this program do not count against the balancer
	}
	l.conns[fd].begin = due
	return l.again(int(fd))
}

func (l *load) responded(fd int32) {
	if l.counting {
		l.latencies = append(l.latencies, int64(time.Since(l.conns[fd].begin)))
	}
	l.conns[fd].got = 0
	l.idle = append(l.idle, fd)
}

// allIdle waits until every connection has had its first response.
func (l *load) allIdle() error {
	deadline := time.Now().Add(10 * time.Second)
	for len(l.idle) < l.Clients {
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d connections have a response", len(l.idle), l.Clients)
		}
		events, err := l.wait(time.Second)
		if err != nil {
			return err
		}
		for _, e := range events {
			complete, err := l.step(e)
			if err != nil {
				return err
			}
			if complete {
				l.idle = append(l.idle, e.Fd)
			}
		}
	}
	return nil
}

// percentile of sorted nanoseconds, in µs.
func percentile(sorted []int64, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return float64(sorted[min(len(sorted)-1, int(float64(len(sorted))*p/100))]) / 1000
}
