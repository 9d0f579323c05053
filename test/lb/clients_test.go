package lb

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/lbtest"
)

// patience is how long a client waits for an answer.
const patience = 10 * time.Second

// connect opens a TLS connection through the balancer.
func (r *rig) connect(ctx context.Context, from *lbtest.Namespace) (*tls.Conn, error) {
	raw, err := from.Dial(ctx, cmp.Or(r.row.listen, listenAddress))
	if err != nil {
		return nil, err
	}
	return r.secure(ctx, raw)
}

// secure does the TLS handshake.
func (r *rig) secure(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	conn := tls.Client(raw, &tls.Config{RootCAs: r.pool, ServerName: "10.42.0.1"})
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return conn, nil
}

// request makes one request on a new connection, and returns the name of the backend that
// answered.
func (r *rig) request(ctx context.Context, from *lbtest.Namespace, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := r.connect(ctx, from)
	if err != nil {
		return "", err
	}
	return ask(conn)
}

// ask makes one request, and closes the connection.
func ask(conn *tls.Conn) (string, error) {
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: 10.42.0.1\r\n\r\n"); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), err
}

// sent is an ended request.
type sent struct {
	at      time.Time
	took    time.Duration
	backend string
	err     error
}

func (s sent) end() time.Time { return s.at.Add(s.took) }

// load is client A: new connections with one request each, at a fixed rate.
type load struct {
	mu     sync.Mutex
	done   []sent
	ending context.CancelFunc
	all    sync.WaitGroup
}

// load starts client A, which ends with the test.
func (r *rig) load(t *testing.T, perSecond int) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{ending: cancel}
	l.all.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.all.Go(func() { l.send(r) })
			}
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (l *load) send(r *rig) {
	s := sent{at: time.Now()}
	s.backend, s.err = r.request(context.Background(), r.clients, patience)
	s.took = time.Since(s.at)
	l.mu.Lock()
	l.done = append(l.done, s)
	l.mu.Unlock()
}

// stop stops sending and waits for the answers.
func (l *load) stop() {
	l.ending()
	l.all.Wait()
}

// between returns the requests started at or after from and before to, in order. Zero
// times are no limits. Requests under way when a fault started belong to the time before
// it: sent data cannot be taken back.
func (l *load) between(from, to time.Time) requests {
	l.mu.Lock()
	defer l.mu.Unlock()
	var some requests
	for _, s := range l.done {
		if !s.at.Before(from) && (to.IsZero() || s.at.Before(to)) {
			some = append(some, s)
		}
	}
	slices.SortFunc(some, func(a, b sent) int { return a.at.Compare(b.at) })
	return some
}

// awaitAnswer waits until the backend has answered a request started after a moment, and
// returns how long after that moment the first such request was started.
func (l *load) awaitAnswer(after time.Time, backend string, limit time.Duration) elapsed {
	for machine().ranSince(after) < limit {
		if answers := l.between(after, time.Time{}).of(backend); len(answers) > 0 {
			return span(after, answers[0].at)
		}
		<-time.After(10 * time.Millisecond)
	}
	return elapsed{d: limit, more: true}
}

// atOnce opens n connections within a moment, as clients do that were all cut off, and
// makes one request on each. Their SYNs leave before the first is answered.
func (r *rig) atOnce(t *testing.T, n int, limit time.Duration) requests {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	to := netip.MustParseAddrPort(listenAddress)
	var mu sync.Mutex
	var all requests
	var asking sync.WaitGroup
	var failed error
	r.clients.Do(func() {
		for range n {
			at := time.Now()
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				failed = err
				return
			}
			if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil && err != unix.EINPROGRESS {
				unix.Close(fd)
				failed = err
				return
			}
			asking.Go(func() {
				s := sent{at: at}
				s.backend, s.err = r.askOn(ctx, fd)
				s.took = time.Since(at)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, s)
			})
		}
	})
	asking.Wait()
	if failed != nil {
		t.Fatalf("open %d connections: %v", n, failed)
	}
	return all
}

func (r *rig) askOn(ctx context.Context, fd int) (string, error) {
	f := os.NewFile(uintptr(fd), "client")
	raw, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return "", err
	}
	conn, err := r.secure(ctx, raw)
	if err != nil {
		return "", err
	}
	return ask(conn)
}

type requests []sent

func (rs requests) failed() requests {
	var failed requests
	for _, s := range rs {
		if s.err != nil {
			failed = append(failed, s)
		}
	}
	return failed
}

func (rs requests) of(backend string) requests {
	var some requests
	for _, s := range rs {
		if s.backend == backend && s.err == nil {
			some = append(some, s)
		}
	}
	return some
}

// since returns the requests started at or after a moment.
func (rs requests) since(moment time.Time) requests {
	var some requests
	for _, s := range rs {
		if !s.at.Before(moment) {
			some = append(some, s)
		}
	}
	return some
}

// slower returns the requests that failed or took longer.
func (rs requests) slower(than time.Duration) requests {
	var slow requests
	for _, s := range rs {
		if s.err != nil || s.took > than {
			slow = append(slow, s)
		}
	}
	return slow
}

// unstalled returns the requests during which the machine did not stall.
func (rs requests) unstalled() requests {
	var some requests
	for _, s := range rs {
		if machine().between(s.at, s.end()) == 0 {
			some = append(some, s)
		}
	}
	return some
}

// worst returns the longest duration of an answered request.
func (rs requests) worst() time.Duration {
	worst := time.Duration(0)
	for _, s := range rs {
		if s.err == nil {
			worst = max(worst, s.took)
		}
	}
	return worst
}

func (rs requests) percentile(p int) time.Duration {
	if len(rs) == 0 {
		return 0
	}
	var all []time.Duration
	for _, s := range rs {
		all = append(all, s.took)
	}
	slices.Sort(all)
	return all[min(len(all)-1, len(all)*p/100)]
}

// busiest returns the number of the backend with the most answers: the one to break,
// because it would get new connections.
func (rs requests) busiest() int {
	busiest, most := 0, -1
	for i := range backendCount {
		if n := len(rs.of(backendName(i))); n > most {
			busiest, most = i, n
		}
	}
	return busiest
}

// lastBegin returns how long after a moment the last request was started; 0 without one.
func (rs requests) lastBegin(after time.Time) time.Duration {
	if len(rs) == 0 {
		return 0
	}
	return rs[len(rs)-1].at.Sub(after)
}

// text returns the share of failed requests, and the reason of the first.
func (rs requests) text() string {
	failed := rs.failed()
	if len(failed) == 0 {
		return fmt.Sprintf("0 of %d", len(rs))
	}
	return fmt.Sprintf("%d of %d (%v)", len(failed), len(rs), failed[0].err)
}

// The kinds of watches.
const (
	beating = "beating" // the backend sends a line per second
	idle    = "idle"    // neither side sends
	talking = "talking" // the client sends a line per second
)

// watch is client B: one long stream.
type watch struct {
	kind    string
	backend string
	began   time.Time

	mu     sync.Mutex
	conn   *tls.Conn
	closed time.Time // zero while it lives
	why    error
	late   time.Duration // longest time for a line to arrive
}

// watches opens n watches, and fails if one cannot be opened. Each ends with the test.
func (r *rig) watches(t *testing.T, n int, kind string, from *lbtest.Namespace) watches {
	t.Helper()
	var mu sync.Mutex
	var all watches
	var opening sync.WaitGroup
	slots := make(chan struct{}, 20)
	for range n {
		opening.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			w, err := r.watch(t.Context(), kind, from)
			if err != nil {
				t.Errorf("open a watch: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, w)
		})
	}
	opening.Wait()
	t.Cleanup(func() {
		for _, w := range all {
			w.conn.NetConn().Close()
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return all
}

func (r *rig) watch(ctx context.Context, kind string, from *lbtest.Namespace) (*watch, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := r.connect(ctx, from)
	if err != nil {
		return nil, err
	}
	query := ""
	if kind != beating {
		query = "?idle"
	}
	if _, err := fmt.Fprintf(conn, "GET /watch%s HTTP/1.0\r\n\r\n", query); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	var line string
	for range 3 { // status, end of the headers, name
		if line, err = in.ReadString('\n'); err != nil {
			return nil, err
		}
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	w := &watch{kind: kind, backend: strings.TrimSpace(line), began: time.Now(), conn: conn}
	go w.read(in)
	if kind == talking {
		go w.talk()
	}
	return w, nil
}

func (w *watch) read(in *bufio.Reader) {
	for {
		line, err := in.ReadString('\n')
		now := time.Now()
		w.mu.Lock()
		if err != nil {
			w.closed, w.why = now, err
			w.mu.Unlock()
			w.conn.NetConn().Close()
			return
		}
		if at, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64); err == nil {
			w.late = max(w.late, time.Duration(monotonic()-at))
		}
		w.mu.Unlock()
	}
}

func (w *watch) talk() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range tick.C {
		if _, err := io.WriteString(w.conn, "still there\n"); err != nil {
			return
		}
	}
}

func (w *watch) end() (closed time.Time, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed, w.why
}

type watches []*watch

func (ws watches) on(backend string) watches {
	var some watches
	for _, w := range ws {
		if w.backend == backend {
			some = append(some, w)
		}
	}
	return some
}

// except returns the watches on other backends.
func (ws watches) except(backend string) watches {
	var some watches
	for _, w := range ws {
		if w.backend != backend {
			some = append(some, w)
		}
	}
	return some
}

// closed returns the ended watches.
func (ws watches) closed() watches {
	var some watches
	for _, w := range ws {
		if closed, _ := w.end(); !closed.IsZero() {
			some = append(some, w)
		}
	}
	return some
}

// why returns the reason of the first ended watch, as text.
func (ws watches) why() string {
	for _, w := range ws.closed() {
		_, why := w.end()
		return why.Error()
	}
	return ""
}

// late returns the longest time for a line to arrive, since resetLate.
func (ws watches) late() time.Duration {
	worst := time.Duration(0)
	for _, w := range ws {
		w.mu.Lock()
		worst = max(worst, w.late)
		w.mu.Unlock()
	}
	return worst
}

func (ws watches) resetLate() {
	for _, w := range ws {
		w.mu.Lock()
		w.late = 0
		w.mu.Unlock()
	}
}

// awaitClosed waits until all are closed. It returns how long after the fault the last one
// was closed, or that this exceeded the limit.
func (ws watches) awaitClosed(fault time.Time, limit time.Duration) elapsed {
	for {
		if len(ws.closed()) == len(ws) {
			break
		}
		if machine().ranSince(fault) > limit {
			return elapsed{d: limit, more: true}
		}
		<-time.After(5 * time.Millisecond)
	}
	last := fault
	for _, w := range ws {
		if closed, _ := w.end(); closed.After(last) {
			last = closed
		}
	}
	return span(fault, last)
}

// until waits until a moment, while the load continues.
func until(t *testing.T, moment time.Time) {
	t.Helper()
	select {
	case <-time.After(time.Until(moment)):
	case <-t.Context().Done():
	}
}
