package check

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counted is a server that counts connections and handshakes.
type counted struct {
	addr              netip.AddrPort
	conns, handshakes atomic.Int64
	resumed           atomic.Int64 // of handshakes
	requests          atomic.Int64
	bytes             atomic.Int64 // read and written
}

type countedConn struct {
	net.Conn
	bytes *atomic.Int64
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.bytes.Add(int64(n))
	return n, err
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}

type countedListener struct {
	net.Listener
	of *counted
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.of.conns.Add(1)
	return countedConn{c, &l.of.bytes}, nil
}

// serveCounted runs an HTTPS server with Go's own loop, as a kube-apiserver does. stop
// ends it as a kill would.
func serveCounted(t *testing.T, conf *tls.Config, h http.HandlerFunc) (s *counted, stop func()) {
	t.Helper()
	l, addr := listen(t)
	s = &counted{addr: addr}
	conf = conf.Clone()
	conf.VerifyConnection = func(state tls.ConnectionState) error {
		s.handshakes.Add(1)
		if state.DidResume {
			s.resumed.Add(1)
		}
		return nil
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		h(w, r)
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(tls.NewListener(countedListener{l, s}, conf)) })
	stop = func() { server.Close(); wg.Wait() }
	t.Cleanup(stop)
	return s, stop
}

func newProber(t *testing.T, ca *authority, addr netip.AddrPort) *prober {
	p := &prober{cfg: Config{Mode: HTTPS, Path: "/readyz", Interval: time.Second, Timeout: time.Minute, Roots: ca.pool}, addr: fixed(addr)}
	t.Cleanup(p.drop)
	return p
}

// awaitIdle waits until the connection of the last check can carry another.
func awaitIdle(t *testing.T, p *prober) {
	t.Helper()
	await(t, "the connection is idle", func() bool { return p.line != nil && p.line.phase.Load() == lineIdle })
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

// A hundred checks take one connection and one handshake, and a small part of the bytes of
// a hundred connections.
func TestChecksUseOneConnection(t *testing.T) {
	ca := newAuthority(t)
	const checks = 100
	cost := func(each func(*prober)) *counted {
		s, _ := serveCounted(t, ca.server(t, time.Hour), status(200, "ok"))
		p := newProber(t, ca, s.addr)
		for i := range checks {
			r := probeOnce(p)
			if r.Kind != KindOK || r.CertExpiry.IsZero() || r.HTTP <= 0 || r.Kept == (r.TLS > 0) || r.Kept == (r.Connect > 0) {
				t.Fatalf("check %d: got %+v", i, r)
			}
			awaitIdle(t, p)
			p.line.until = time.Now().Add(time.Hour) // however slow this machine is
			p.tlsUntil = p.line.until
			each(p)
		}
		return s
	}
	kept := cost(func(*prober) {})
	anew := cost(func(p *prober) { p.drop() })
	whole := cost(func(p *prober) { p.drop(); p.tlsUntil = time.Time{} })
	for _, n := range []struct {
		what      string
		got, want int64
	}{
		{"connections", kept.conns.Load(), 1}, {"handshakes", kept.handshakes.Load(), 1}, {"requests", kept.requests.Load(), checks},
		{"new connections", anew.conns.Load(), checks}, {"resumed of them", anew.resumed.Load(), checks - 1},
		{"resumed of whole handshakes", whole.resumed.Load(), 0},
	} {
		if n.got != n.want {
			t.Errorf("%s: got %d, want %d", n.what, n.got, n.want)
		}
	}
	if k, a := kept.bytes.Load(), anew.bytes.Load(); k*3 > a {
		t.Errorf("one connection took %d bytes, new ones %d", k, a)
	}
}

// What ends the use of one connection.
func TestNewConnection(t *testing.T) {
	ca := newAuthority(t)
	s, _ := serveCounted(t, ca.server(t, time.Hour), status(200, "ok"))
	other, _ := serveCounted(t, ca.server(t, time.Hour), status(200, "ok"))
	p := newProber(t, ca, s.addr)
	for i, step := range []struct {
		name           string
		change         func()
		kept           bool
		conns, resumed int64
	}{
		{"the first", func() {}, false, 1, 0},
		{"the next", func() {}, true, 1, 0},
		{"its time is over", func() { p.line.until = time.Now() }, false, 2, 1},
		{"the time of the session is over", func() { p.tlsUntil = time.Now() }, false, 3, 1},
		{"the next again", func() {}, true, 3, 1},
		{"dropped", func() { p.drop() }, false, 4, 2},
		{"another address", func() { p.addr = fixed(other.addr) }, false, 4, 2},
	} {
		step.change()
		if r := probeOnce(p); r.Kind != KindOK || r.Kept != step.kept {
			t.Errorf("%s: got %+v, want kept %v", step.name, r, step.kept)
		}
		awaitIdle(t, p)
		if c, r := s.conns.Load(), s.resumed.Load(); c != step.conns || r != step.resumed {
			t.Errorf("%d %s: got %d connections, %d resumed; want %d, %d", i, step.name, c, r, step.conns, step.resumed)
		}
	}
}

// Answers after which a connection is not used again. The verdict is the same.
func TestNotKept(t *testing.T) {
	ca := newAuthority(t)
	conf := ca.server(t, time.Hour)
	for name, tt := range map[string]struct {
		answer string
		kind   Kind
	}{
		"close":              {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", KindOK},
		"HTTP/1.0":           {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", KindOK},
		"no length":          {"HTTP/1.1 200 OK\r\n\r\nok", KindOK},
		"long body":          {"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + strings.Repeat("x", 99999), KindOK},
		"body does not come": {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", KindOK},
		"another answer":     {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", KindOK},
		"no HTTP":            {"220 mail\r\n", KindBadStatus},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProber(t, ca, serveTLS(t, conf, true, tt.answer))
			for range 3 {
				if r := probeOnce(p); r.Kind != tt.kind || r.Kept {
					t.Errorf("got %+v, want %s on a new connection", r, tt.kind)
				}
				if name == "another answer" {
					await(t, "the connection has ended", func() bool { return p.line.over() })
				}
			}
		})
	}
}

// A backend that dies is noticed at once, by the end of the idle connection, and not at
// the next check, which is an hour away.
func TestDeathIsNoticedAtOnce(t *testing.T) {
	ca := newAuthority(t)
	s, stop := serveCounted(t, ca.server(t, time.Hour), status(200, "ok"))
	cfg := Config{Mode: HTTPS, Path: "/readyz", Interval: time.Second, Timeout: time.Minute, Fall: 2, Rise: 2, Roots: ca.pool}
	changes := make(chan Status, 1000)
	c := New(cfg, fixed(s.addr), Observer{Changed: func(s Status) { changes <- s }})
	c.spread = func(time.Duration) time.Duration { return time.Hour }
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.Run(ctx) })
	awaitState(t, changes, Ready)
	stop()
	awaitState(t, changes, Dead)
}

// A backend that ends each idle connection is not checked more often for that.
func TestBackendThatEndsConnections(t *testing.T) {
	ca := newAuthority(t)
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	addr := serveTLS(t, ca.server(t, time.Hour), false, answer)
	cfg := Config{Mode: HTTPS, Path: "/", Interval: time.Second, Timeout: time.Minute, Fall: 2, Rise: 2, Roots: ca.pool}
	checks := make(chan Result, 100)
	c := New(cfg, fixed(addr), Observer{Checked: func(r Result) { checks <- r }})
	c.spread = func(time.Duration) time.Duration { return time.Hour }
	c.jitter, c.quiet = c.spread, time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.Run(ctx) })
	for range 2 { // the second, for the end of the first one's connection
		if r := <-checks; r.Kind != KindOK || r.Kept {
			t.Errorf("got %+v", r)
		}
	}
	for range 3 { // it holds one, so two of them were seen
		c.lost <- struct{}{}
	}
	cancel()
	wg.Wait()
	if left := time.Until(c.plan.due); len(checks) > 0 || left < time.Minute {
		t.Errorf("got %d more checks, the next in %v", len(checks), left)
	}
}

// A listener that takes no more connections, while the old ones are answered, is noticed
// by the next report of a client, and without one when the connection has had its time.
func TestListenerGone(t *testing.T) {
	ca := newAuthority(t)
	l, addr := listen(t)
	server := &http.Server{Handler: status(200, "ok")}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(tls.NewListener(l, ca.server(t, time.Hour))) })
	defer wg.Wait()
	defer server.Close()

	for name, doubt := range map[string]func(*Checker, *prober){
		"a client reports":              func(c *Checker, _ *prober) { c.ConnectFailed("connection refused"); c.begin() },
		"the time of the line has come": func(_ *Checker, p *prober) { p.line.until = time.Now() },
	} {
		c := New(Config{Mode: HTTPS, Path: "/", Interval: time.Second, Timeout: time.Minute, Fall: 2, Rise: 2, Roots: ca.pool}, fixed(addr), Observer{})
		p := newProber(t, ca, addr)
		c.probe, c.renew = p.probe, p.drop
		if r := probeOnce(p); r.Kind != KindOK {
			t.Fatalf("got %+v", r)
		}
		awaitIdle(t, p)
		defer func() {
			if r := probeOnce(p); r.Kind != KindOK || !r.Kept {
				t.Errorf("%s: got %+v on the old connection", name, r)
			}
			awaitIdle(t, p)
			doubt(c, p)
			if r := probeOnce(p); r.Kind != KindConnectError {
				t.Errorf("%s: got %+v, want %s", name, r, KindConnectError)
			}
		}()
	}
	l.Close()
}

// The kept connection hangs: the check ends at its limit, as on a new one.
func TestKeptConnectionHangs(t *testing.T) {
	ca := newAuthority(t)
	var hang atomic.Bool
	s, _ := serveCounted(t, ca.server(t, time.Hour), func(w http.ResponseWriter, r *http.Request) {
		if hang.Load() {
			<-r.Context().Done()
		}
	})
	p := newProber(t, ca, s.addr)
	if r := probeOnce(p); r.Kind != KindOK {
		t.Fatalf("got %+v", r)
	}
	awaitIdle(t, p)
	hang.Store(true)
	p.cfg.Timeout = 200 * time.Millisecond
	if r := probeOnce(p); r.Kind != KindTimeout || !r.Kept || r.ConnectPhase || !strings.Contains(r.Err, "no answer to GET /readyz") {
		t.Errorf("got %+v, want a timeout of the kept connection", r)
	}
	hang.Store(false)
	p.cfg.Timeout = time.Minute
	if r := probeOnce(p); r.Kind != KindOK || r.Kept {
		t.Errorf("got %+v, want ok on a new connection", r)
	}
}

// A backend that hangs is dead, and the first check that shows it is on the kept connection. Reports
// of clients, however many, do not make a check longer.
func TestHangIsSeenOnKeptConnection(t *testing.T) {
	ca := newAuthority(t)
	var hang atomic.Bool
	hangs := make(chan struct{}, 1000)
	s, _ := serveCounted(t, ca.server(t, time.Hour), func(w http.ResponseWriter, r *http.Request) {
		if hang.Load() {
			hangs <- struct{}{}
			<-r.Context().Done()
		}
	})
	cfg := Config{Mode: HTTPS, Path: "/readyz", Interval: 50 * time.Millisecond, Timeout: time.Second, Fall: 2, Rise: 2, Roots: ca.pool}
	var c *Checker
	var first Result
	kept := 0
	changes := make(chan Status, 1000)
	c = New(cfg, fixed(s.addr), Observer{Changed: func(s Status) { changes <- s }, Checked: func(r Result) {
		switch {
		case r.Kind == KindOK && r.Kept:
			if kept++; kept == 3 {
				hang.Store(true)
			}
		case r.Kind != KindOK && first.Kind == "":
			first = r
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.Run(ctx) })
	awaitState(t, changes, Ready)
	<-hangs
	await(t, "the request is acknowledged, which is a sign of life", func() bool { return c.Unheard(time.Now()) == 0 })
	wg.Go(func() {
		for range 1000 {
			c.ConnectFailed("no answer yet")
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	awaitState(t, changes, Dead)
	cancel()
	wg.Wait()
	if first.Kind != KindTimeout || !first.Kept || !strings.Contains(first.Err, "no answer to GET /readyz") {
		t.Errorf("got %+v", first)
	}
}

// A certificate that is replaced by a bad one is seen once the session has had its time,
// although the old connection goes on.
func TestNewCertificateIsSeen(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	good, bad := ca.server(t, time.Hour).Certificates[0], other.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "kube-apiserver"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour),
	})
	var swapped atomic.Bool
	s, _ := serveCounted(t, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if swapped.Load() {
			return &bad, nil
		}
		return &good, nil
	}}, status(200, "ok"))
	p := newProber(t, ca, s.addr)
	probeOnce(p)
	awaitIdle(t, p)
	swapped.Store(true)
	if r := probeOnce(p); r.Kind != KindOK {
		t.Errorf("on the old connection: got %+v", r)
	}
	awaitIdle(t, p)
	p.tlsUntil = time.Now()
	if r := probeOnce(p); r.Kind != KindBadCert {
		t.Errorf("got %+v, want %s", r, KindBadCert)
	}
}

func TestLifeIsSpread(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		d := spreadOf(LineLife)
		if d < LineLife/2 || d > LineLife {
			t.Fatalf("got %v of %v", d, LineLife)
		}
		seen[d.Round(LineLife/20)] = true
	}
	if len(seen) < 5 {
		t.Errorf("got %d different ones of 100", len(seen))
	}
}
