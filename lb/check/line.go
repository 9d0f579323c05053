package check

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LineLife is how long a connection carries check after check. A new one costs several
// times as much as a check on an old one, most of it for TLS, but only a new one shows
// that the backend still accepts connections. Clients that are refused report it sooner.
const LineLife = 20 * time.Second

// A line is a connection for one check after another. Its goroutine reads all the time, so
// that the end of the connection shows at once, and not at the next check.
type line struct {
	conn    net.Conn // TLS
	to      netip.AddrPort
	request []byte
	expiry  time.Time
	until   time.Time // when it is replaced

	phase   atomic.Int32
	head    atomic.Bool // the header of the answer to the present request is there
	closing atomic.Bool
	quit    chan struct{} // closed by close
	answers chan reply    // the answer to each request
	done    chan struct{} // closed when its goroutine has ended
}

// The phases of a line.
const (
	lineAsked = iota // a request is under way
	lineRead         // the answer is known, and its body is not read to the end
	lineIdle         // it may carry a request
)

type reply struct {
	answer
	err error
}

// start starts a line, in phase lineAsked. lost is called when the backend ends it while it
// is idle.
func (l *line) start(life time.Duration, lost func()) {
	l.until = time.Now().Add(spreadOf(life))
	l.quit, l.answers, l.done = make(chan struct{}), make(chan reply), make(chan struct{})
	go l.read(lost)
}

// spreadOf returns a time between half of d and d, so that lines that began together do
// not end together.
func spreadOf(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Float64()*float64(d/2))
}

// read passes answers on until the connection ends, or an answer after which it cannot
// carry another.
func (l *line) read(lost func()) {
	defer close(l.done)
	defer l.conn.Close()
	in := &stream{r: l.conn, head: &l.head}
	buffered := bufio.NewReader(in)
	for {
		in.left = maxHead + maxBody
		l.head.Store(false)
		a, resp, err := readAnswer(in, buffered)
		if l.phase.Load() == lineIdle { // it has ended, or an answer came without a request
			if !l.closing.Load() {
				lost()
			}
			return
		}
		again := err == nil && !resp.Close && resp.ProtoAtLeast(1, 1)
		l.phase.Store(lineRead)
		select {
		case l.answers <- reply{a, err}:
		case <-l.quit:
			return
		}
		if !again || !drained(resp) {
			return
		}
		l.phase.Store(lineIdle)
	}
}

// drained reads the rest of an answer and reports whether that was its end.
func drained(resp *http.Response) bool {
	_, err := io.CopyN(io.Discard, resp.Body, maxBody)
	return err == io.EOF
}

// take makes the line carry another request. It returns false when it cannot.
func (l *line) take() bool {
	return time.Now().Before(l.until) && l.phase.CompareAndSwap(lineIdle, lineAsked) && !l.over()
}

func (l *line) over() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// ask sends the request and returns its answer. lift lifts the limit of the connection, which
// has to outlive an answer that is late; ctx ends the wait. An answer whose header has come
// counts without the rest.
func (l *line) ask(ctx context.Context, lift func()) (answer, error) {
	_, err := l.conn.Write(l.request)
	lift()
	if err != nil {
		return answer{}, err
	}
	over := ctx.Done()
	for {
		select {
		case r := <-l.answers:
			return r.answer, r.err
		case <-l.done:
			return answer{}, io.EOF
		case <-over:
			if !l.head.Load() {
				return answer{}, os.ErrDeadlineExceeded
			}
			l.conn.SetReadDeadline(time.Unix(1, 0))
			over = nil
		}
	}
}

// acknowledged reports whether the backend's kernel has acknowledged all that was sent.
func (l *line) acknowledged() bool {
	t, isTLS := l.conn.(*tls.Conn)
	if !isTLS {
		return true
	}
	c, isSocket := t.NetConn().(syscall.Conn)
	if !isSocket {
		return true
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	all := false
	if err := raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		all = err == nil && info.Unacked == 0 && info.Notsent_bytes == 0
	}); err != nil {
		return false
	}
	return all
}

// close ends the line and waits for its goroutine.
func (l *line) close() {
	l.closing.Store(true)
	close(l.quit)
	l.conn.SetDeadline(time.Unix(1, 0)) // a backend that reads nothing does not hold the end up
	l.conn.Close()
	<-l.done
}
