package lb

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/lbtest"
)

// The backend is a small TLS server in place of a kube-apiserver:
//
//	GET /readyz   200 or the status of an earlier order, after the delay of one; the
//	              connection can carry more requests, unless the client says otherwise
//	GET /watch    a line per second until one side closes; with ?idle none after the first
//	GET /stream   200 and streamBytes bytes, then it closes the connection
//	GET /…        200, then it closes the connection
//
// Each answer starts with the backend's name. It reads orders from standard input, one
// per line, and answers each with a line on standard output.
type backend struct {
	name   string
	tls    *tls.Config
	listen string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]use
	readyz   int
	delay    time.Duration // before an answer to /readyz
	stats    stats
	watches  sync.WaitGroup
	stop     context.Context // ends watches
	end      context.CancelFunc
}

// use is the use that a client makes of a connection.
type use int

const (
	useNone use = iota // there was no request
	useBusy
	useIdle // the last request is answered
)

// stats is a backend's report about itself.
type stats struct {
	Accepted int // connections since the start
	Open     int // now
	Silent   int // open ones without a request
	Idle     int // open ones between two requests
	Requests int // answered ones, without /readyz
	Probes   int // answered requests of /readyz
	Watches  int // now
}

// runBackend is the helper: NAME LISTEN CERTIFICATE KEY.
func runBackend(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("got %d arguments, want NAME LISTEN CERTIFICATE KEY", len(args))
	}
	pair, err := tls.LoadX509KeyPair(args[2], args[3])
	if err != nil {
		return err
	}
	b := &backend{
		name: args[0], listen: args[1], readyz: 200, conns: map[net.Conn]use{},
		tls: &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true},
	}
	b.stop, b.end = context.WithCancel(context.Background())
	if err := b.open(); err != nil {
		return err
	}
	fmt.Println("ready")
	for orders := bufio.NewScanner(os.Stdin); orders.Scan(); {
		if err := b.obey(orders.Text()); err != nil {
			return err
		}
	}
	return nil
}

func (b *backend) obey(order string) error {
	var code int
	var delay string
	switch {
	case order == "stats":
	case order == "crash": // as if it were killed; the order open brings it back at once
		b.crash()
	case order == "open":
		if err := b.open(); err != nil {
			return err
		}
	case order == "finish": // as a kube-apiserver does after its shutdown delay
		b.finish()
		os.Exit(0)
	case strings.HasPrefix(order, "delay "):
		if _, err := fmt.Sscanf(order, "delay %s", &delay); err != nil {
			return fmt.Errorf("order %q", order)
		}
		d, err := time.ParseDuration(delay)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.delay = d
		b.mu.Unlock()
	default:
		if _, err := fmt.Sscanf(order, "readyz %d", &code); err != nil {
			return fmt.Errorf("order %q", order)
		}
		b.mu.Lock()
		b.readyz = code
		b.mu.Unlock()
	}
	return json.NewEncoder(os.Stdout).Encode(b.count())
}

func (b *backend) count() stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Open = len(b.conns)
	for _, u := range b.conns {
		switch u {
		case useNone:
			s.Silent++
		case useIdle:
			s.Idle++
		}
	}
	return s
}

func (b *backend) open() error {
	l, err := net.Listen("tcp", b.listen)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.listener = l
	b.mu.Unlock()
	go func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go b.handle(conn)
			}
		}
	}()
	return nil
}

func (b *backend) crash() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listener.Close()
	for conn := range b.conns {
		_ = conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
}

func (b *backend) finish() {
	b.listener.Close()
	b.end()
	b.watches.Wait()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if s := b.count(); s.Open == s.Silent+s.Idle {
			return // all requests are answered
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (b *backend) handle(raw net.Conn) {
	b.mu.Lock()
	b.stats.Accepted++
	b.conns[raw] = useNone
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.conns, raw)
		b.mu.Unlock()
		raw.Close()
	}()
	conn := tls.Server(raw, b.tls)
	in := bufio.NewReader(conn)
	for b.serve(raw, conn, in) {
	}
}

// serve answers one request, and reports whether the connection may carry another.
func (b *backend) serve(raw net.Conn, conn *tls.Conn, in *bufio.Reader) bool {
	path, last, err := readRequest(in)
	if err != nil {
		return false
	}
	b.mu.Lock()
	b.conns[raw] = useBusy
	code, delay := b.readyz, b.delay
	b.mu.Unlock()
	switch {
	case path.Path == "/readyz":
		<-time.After(delay)
		b.counted(&b.stats.Probes, 1)
		b.answer(conn, code, last)
		b.mu.Lock()
		b.conns[raw] = useIdle
		b.mu.Unlock()
		return !last
	case path.Path == "/watch":
		b.watch(conn, in, path.Query().Has("idle"))
	case path.Path == "/stream":
		stream(conn)
	default:
		b.counted(&b.stats.Requests, 1)
		b.answer(conn, 200, true)
	}
	return false
}

func (b *backend) counted(n *int, by int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*n += by
}

// readRequest returns the path of a request, and whether it is the last of its connection.
func readRequest(in *bufio.Reader) (path *url.URL, last bool, err error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return nil, false, err
	}
	words := strings.Fields(line)
	if len(words) != 3 {
		return nil, false, fmt.Errorf("request %q", line)
	}
	last = words[2] != "HTTP/1.1"
	for {
		header, err := in.ReadString('\n')
		if err != nil {
			return nil, false, err
		}
		if strings.TrimSpace(header) == "" {
			break
		}
		last = last || strings.EqualFold(strings.TrimSpace(header), "Connection: close")
	}
	path, err = url.Parse(words[1])
	return path, last, err
}

func (b *backend) answer(conn *tls.Conn, code int, last bool) {
	body, then := b.name+"\n", "keep-alive"
	if last {
		then = "close"
	}
	fmt.Fprintf(conn, "HTTP/1.1 %d x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s", code, len(body), then, body)
	if last {
		conn.Close()
	}
}

// streamBytes are more than the kernels on the way take.
const streamBytes = 64 << 20

// stream sends streamBytes, as fast as the client reads them.
func stream(conn *tls.Conn) {
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "HTTP/1.0 200 OK\r\n\r\n"); err != nil {
		return
	}
	block := make([]byte, 64<<10)
	for range streamBytes / len(block) {
		if _, err := conn.Write(block); err != nil {
			return
		}
	}
}

// watch sends lines that contain the time of sending. It reads and drops the lines of the
// client.
func (b *backend) watch(conn *tls.Conn, in *bufio.Reader, idle bool) {
	b.watches.Add(1)
	defer b.watches.Done()
	b.counted(&b.stats.Watches, 1)
	defer b.counted(&b.stats.Watches, -1)
	if _, err := fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\n\r\n%s\n", b.name); err != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, in)
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	if idle {
		tick.Stop()
	}
	for {
		select {
		case <-gone:
			return
		case <-b.stop.Done():
			conn.Close()
			<-gone
			return
		case <-tick.C:
			if _, err := fmt.Fprintf(conn, "%d\n", monotonic()); err != nil {
				return
			}
		}
	}
}

// monotonic returns the clock that all processes of the machine share, in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// tell gives a backend an order and returns its answer.
func tell(t *testing.T, p *lbtest.Process, order string) stats {
	t.Helper()
	if _, err := fmt.Fprintln(p.Stdin, order); err != nil {
		t.Fatalf("%s to %s: %v", order, p.Name, err)
	}
	var s stats
	if err := json.Unmarshal([]byte(p.Line(t)), &s); err != nil {
		t.Fatalf("%s to %s: %v", order, p.Name, err)
	}
	return s
}
