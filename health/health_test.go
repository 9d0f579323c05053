package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kthwd/health/conns"
	"kthwd/test/harness"
)

// patience limits every wait of these tests; none waits that long when it passes.
const patience = time.Minute

const readyzOK = "[+]ping ok\n[+]etcd ok\n[+]poststarthook/rbac/bootstrap-roles ok\nreadyz check passed\n"

// An apiserver is a real TLS server that stands where kube-apiserver would, so that
// it can be made to fail in every way.
type apiserver struct {
	*httptest.Server
	asked atomic.Int64

	mu     sync.Mutex
	answer http.HandlerFunc
	uris   []string
	peers  []string // common names of the clients, one per connection
}

func newAPIServer(t *testing.T, conf *tls.Config) *apiserver {
	t.Helper()
	s := &apiserver{answer: say(200, readyzOK)}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.mu.Lock()
		s.uris = append(s.uris, r.Method+" "+r.URL.RequestURI())
		if len(r.TLS.PeerCertificates) > 0 {
			s.peers = append(s.peers, r.TLS.PeerCertificates[0].Subject.CommonName)
		}
		answer := s.answer
		s.mu.Unlock()
		answer(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = conf
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// will changes the server's answer.
func (s *apiserver) will(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = h
}

func (s *apiserver) lastPeer() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.peers) == 0 {
		return ""
	}
	return s.peers[len(s.peers)-1]
}

func (s *apiserver) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.uris)
}

func say(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// hang accepts the request and does not answer until the client or the test is gone.
func hang(t *testing.T) http.HandlerFunc {
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-done:
		}
	}
}

// A clock tells the time that the test sets.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// config returns the configuration for that server and those files, on a free port.
func config(s *apiserver, f files) Config {
	return Config{
		Address:  "127.0.0.1:0",
		Target:   s.URL,
		CAFile:   f.ca,
		CertFile: f.cert,
		KeyFile:  f.key,
		Timeout:  patience, // tests that time out set it lower
	}
}

// A running is a bridge that runs.
type running struct {
	*Bridge
	*harness.Running
	t     *testing.T
	clock *clock
	url   string
}

// start runs a bridge and stops it at the end of the test.
func start(t *testing.T, cfg Config, tune ...func(*Bridge)) *running {
	t.Helper()
	b := New(cfg)
	clock := &clock{t: time.Now()}
	b.now = clock.now
	for _, f := range tune {
		f(b)
	}
	r := &running{Bridge: b, Running: harness.Start(t, b), t: t, clock: clock}
	r.WaitReady(patience)
	r.url = "http://" + r.Addr().String()
	return r
}

// client keeps no connections, so that none outlives a test.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}

// do makes one request; host "" leaves the address in place.
func (r *running) do(method, path, host string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(body)
}

// want requests path and compares the answer.
func (r *running) want(path string, code int, body string) {
	r.t.Helper()
	resp, got := r.do("GET", path, "")
	if resp.StatusCode != code || got != body {
		r.t.Errorf("GET %s = %d %q; want %d %q", path, resp.StatusCode, got, code, body)
	}
}

func TestAnswers(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	b := start(t, config(s, ca.files("health")))

	tests := []struct {
		name         string
		method, path string
		code         int
		body         string
	}{
		{"healthz", "GET", "/healthz", 200, "ok"},
		{"readyz", "GET", "/readyz", 200, "ok"},
		{"livez", "GET", "/livez", 200, "ok"},
		{"head", "HEAD", "/healthz", 200, ""},
		{"unknown query", "GET", "/healthz?exclude=etcd", 200, "ok"},
		{"post", "POST", "/healthz", 405, "method not allowed\n"},
		{"delete", "DELETE", "/livez", 405, "method not allowed\n"},
		{"root", "GET", "/", 404, "not found; try /healthz, /readyz or /livez\n"},
		{"one check", "GET", "/readyz/etcd", 404, "not found; try /healthz, /readyz or /livez\n"},
		{"the API", "GET", "/api/v1/secrets", 404, "not found; try /healthz, /readyz or /livez\n"},
		{"post elsewhere", "POST", "/version", 404, "not found; try /healthz, /readyz or /livez\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp, body := b.do(tt.method, tt.path, "")
			if resp.StatusCode != tt.code || body != tt.body {
				t.Errorf("got %d %q; want %d %q", resp.StatusCode, body, tt.code, tt.body)
			}
			if allow := resp.Header.Get("Allow"); (allow == "GET, HEAD") != (tt.code == 405) {
				t.Errorf("Allow = %q with %d", allow, tt.code)
			}
			if tt.method == "HEAD" && resp.ContentLength != 2 {
				t.Errorf("Content-Length = %d; want 2, as for GET", resp.ContentLength)
			}
		})
	}

	got := slices.Compact(slices.Sorted(slices.Values(s.seen())))
	if want := []string{"GET /livez?verbose", "GET /readyz?verbose"}; !slices.Equal(got, want) {
		t.Errorf("asked upstream %q; want %q", got, want)
	}
	if got := s.lastPeer(); got != "health" {
		t.Errorf("client certificate of %q; want that of health", got)
	}
	stats := b.stats()
	if want := map[int]uint64{200: 5, 404: 4, 405: 2}; !maps.Equal(stats.Requests, want) {
		t.Errorf("Stats.Requests = %v; want %v", stats.Requests, want)
	}
	if stats.Probes != 2 || stats.ProbeFailures != 0 || stats.LastProbe <= 0 || stats.LastProbeAt.IsZero() {
		t.Errorf("Stats = %+v; want 2 probes without failures", stats)
	}
}

func TestHost(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	cfg := config(s, ca.files("health"))
	cfg.ServerName = "kubernetes.default.svc.cluster.local"
	b := start(t, cfg)

	for host, code := range map[string]int{
		"kubernetes.default.svc.cluster.local":    200,
		"kubernetes.default.svc.cluster.local:80": 200,
		"Kubernetes.Default.svc.cluster.local.":   200,
		"example.com":                             421,
		"kubernetes":                              421,
		"":                                        421, // the address
	} {
		resp, body := b.do("GET", "/healthz", host)
		if resp.StatusCode != code {
			t.Errorf("Host %q: got %d; want %d", host, resp.StatusCode, code)
		}
		if code != 200 && strings.Contains(body, "svc") {
			t.Errorf("Host %q: %q tells the name", host, body)
		}
	}
}

// TestFailsClosed: everything but an honest 200 is a 503.
func TestFailsClosed(t *testing.T) {
	const secret = "Zm9vYmFyLXNlY3JldA"
	ours, other := newCA(t), newCA(t)
	tests := []struct {
		name   string
		tls    *tls.Config
		files  files
		answer http.HandlerFunc
		reason string
	}{
		{name: "failed check", answer: say(500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n"),
			reason: "kube-apiserver /readyz: 500: etcd failed"},
		{name: "failed checks", answer: say(500, "[-]etcd failed\n[-]shutdown failed: "+secret+"\n"),
			reason: "kube-apiserver /readyz: 500: etcd, shutdown failed"},
		{name: "many failed checks", answer: say(500, "[-]a bad\n[-]b bad\n[-]c bad\n[-]d bad\n[-]e bad\n[-]f bad\n[-]g bad\n"),
			reason: "kube-apiserver /readyz: 500: a, b, c, d, e and 2 more failed"},
		{name: "body that is no list", answer: say(503, "goroutine 1 [running]: "+secret+"\n[-]<script>"+secret+"\n"),
			reason: "kube-apiserver /readyz: 503"},
		{name: "unauthorized", answer: say(401, `{"kind":"Status"}`),
			reason: "kube-apiserver /readyz: 401: the bridge's client certificate is not accepted"},
		{name: "forbidden", answer: say(403, `{"message":"`+secret+`"}`), reason: "kube-apiserver /readyz: 403"},
		{name: "no content", answer: say(204, ""), reason: "kube-apiserver /readyz: 204"},
		{name: "redirect", answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/livez?token="+secret, http.StatusFound)
		}, reason: "kube-apiserver /readyz: 302"},
		{name: "endless body", answer: func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := io.WriteString(w, secret+"\n"); err != nil {
					return
				}
			}
		}, reason: "kube-apiserver /readyz: connection closed before the end of the answer"},
		{name: "cut body", answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, readyzOK)
			panic(http.ErrAbortHandler)
		}, reason: "kube-apiserver /readyz: connection closed before the end of the answer"},
		{name: "other CA", tls: other.server(time.Hour),
			reason: "kube-apiserver /readyz: its certificate is not signed by the cluster's CA"},
		{name: "expired", tls: ours.server(-time.Hour),
			reason: "kube-apiserver /readyz: its certificate, or the CA's, has expired or is not valid yet"},
		{name: "other address", tls: ours.serverFor(time.Hour, net.IPv4(10, 0, 0, 1)),
			reason: "kube-apiserver /readyz: its certificate does not name the address it is queried at"},
		{name: "client of another CA", files: func() files {
			f := inDir(t.TempDir())
			f.write(ours, other, "health")
			return f
		}(), reason: "kube-apiserver /readyz: TLS refused: unknown certificate authority"},
		{name: "no files", files: inDir(t.TempDir()),
			reason: "health bridge: no usable CA or client certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.tls == nil {
				tt.tls = ours.server(time.Hour)
			}
			if tt.files == (files{}) {
				tt.files = ours.files("health")
			}
			s := newAPIServer(t, tt.tls)
			if tt.answer != nil {
				s.will(tt.answer)
			}
			b := start(t, config(s, tt.files))
			b.want("/healthz", 503, tt.reason+"\n")
			b.want("/readyz", 503, tt.reason+"\n")

			_, verbose := b.do("GET", "/healthz?verbose", "")
			if !strings.HasSuffix(verbose, "healthz check failed: "+tt.reason+"\n") {
				t.Errorf("verbose = %q; want it to end with the reason", verbose)
			}
			for _, leak := range []string{secret, tt.files.dir, "goroutine", "<"} {
				if strings.Contains(verbose, leak) {
					t.Errorf("verbose tells %q: %q", leak, verbose)
				}
			}
			if got := b.stats(); got.Probes != 1 || got.ProbeFailures != 1 {
				t.Errorf("Stats = %+v; want 1 probe, failed, for three requests", got)
			}
		})
	}
}

func TestDeadListener(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	b := start(t, config(s, ca.files("health")))
	b.want("/healthz", 200, "ok")
	s.Close()
	b.clock.advance(time.Second)
	b.want("/healthz", 503, "kube-apiserver /readyz: connection refused\n")
	b.want("/livez", 503, "kube-apiserver /livez: connection refused\n")
}

// TestHungUpstream uses a server that accepts the request but hangs, and one that accepts
// only the connection, as the kernel does for a stopped process.
func TestHungUpstream(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	s.will(hang(t))
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	for name, target := range map[string]string{"request": s.URL, "handshake": "https://" + silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			cfg := config(s, ca.files("health"))
			cfg.Target, cfg.Timeout = target, 100*time.Millisecond
			b := start(t, cfg)
			begin := time.Now()
			// Of the probe: an asker is told after twice the time that there is no verdict in time.
			if got, want := b.ready.verdict(t.Context()).reason, "kube-apiserver /readyz: no answer within 100ms"; got != want {
				t.Errorf("got %q; want %q", got, want)
			}
			if took := time.Since(begin); took < cfg.Timeout {
				t.Errorf("took %v; want %v at least", took, cfg.Timeout)
			}
		})
	}
}

// TestSharedProbe: 200 clients wait for one probe, 200 more get its verdict, and the next
// client, an interval later, causes the second probe.
func TestSharedProbe(t *testing.T) {
	for _, tt := range []struct {
		name string
		code int
		want int
	}{{"passes", 200, 200}, {"fails", 500, 503}} {
		t.Run(tt.name, func(t *testing.T) {
			ca := newCA(t)
			s := newAPIServer(t, ca.server(time.Hour))
			arrived, release := make(chan struct{}, 10), make(chan struct{})
			s.will(func(w http.ResponseWriter, r *http.Request) {
				arrived <- struct{}{}
				<-release
				w.WriteHeader(tt.code)
			})
			b := start(t, config(s, ca.files("health")))
			codes := make(chan int, 400)
			crowd := func() {
				for i := range 200 {
					path := []string{"/healthz", "/readyz", "/readyz?verbose"}[i%3]
					go func() {
						resp, err := client.Get(b.url + path)
						if err != nil {
							t.Error(err)
							codes <- 0
							return
						}
						resp.Body.Close()
						codes <- resp.StatusCode
					}()
				}
			}
			check := func(n int, probes int64) {
				t.Helper()
				for range n {
					if code := <-codes; code != tt.want {
						t.Errorf("got %d; want %d", code, tt.want)
					}
				}
				if got := s.asked.Load(); got != probes {
					t.Errorf("%d probes; want %d", got, probes)
				}
			}
			crowd()
			<-arrived
			close(release)
			check(200, 1)
			b.clock.advance(time.Second - time.Nanosecond)
			crowd()
			check(200, 1)
			b.clock.advance(time.Nanosecond)
			crowd()
			check(200, 2)
		})
	}
}

// TestNobodyAsks: an idle bridge does not query the apiserver.
func TestNobodyAsks(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	b := start(t, config(s, ca.files("health")))
	b.clock.advance(time.Hour)
	b.do("GET", "/nothing", "")
	b.Stop()
	if got := s.asked.Load(); got != 0 {
		t.Errorf("%d probes; want 0", got)
	}
}

// TestAskerLeaves: a client that leaves does not affect the others.
func TestAskerLeaves(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	s.will(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
			t.Error("the probe was canceled")
		}
	})
	b := start(t, config(s, ca.files("health")))

	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		req, _ := http.NewRequestWithContext(ctx, "GET", b.url+"/healthz", nil)
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			t.Error("answered before the apiserver was")
		}
	}()
	<-arrived
	leave()
	<-left
	// The handler of the client that left ends with a 503 that is not read.
	harness.WaitFor(t, "the handler notices", patience, func() error { return unless(b.stats().Requests[503] == 1, "no 503 counted") })
	close(release)
	b.want("/healthz", 200, "ok")
	if got := s.asked.Load(); got != 1 {
		t.Errorf("%d probes; want 1", got)
	}
}

func TestLocal(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	type state struct {
		ok     bool
		reason string
	}
	var local atomic.Value
	cfg := config(s, ca.files("health"))
	cfg.Local = func() (bool, string) { l := local.Load().(state); return l.ok, l.reason }
	b := start(t, cfg)

	for _, tt := range []struct {
		local state
		want  string
	}{
		{state{false, "waiting for etcd quorum (1 of 3)"}, "waiting for etcd quorum (1 of 3)\n"},
		{state{false, ""}, "not ready\n"},
		{state{false, "kube-apiserver: panic\ngoroutine 1 [running]"}, "kube-apiserver: panic\n"},
		{state{false, strings.Repeat("x", 1000)}, strings.Repeat("x", 200) + "…\n"},
	} {
		local.Store(tt.local)
		b.want("/healthz", 503, tt.want)
	}
	if got := s.asked.Load(); got != 0 {
		t.Errorf("%d probes while not ready; want 0", got)
	}

	local.Store(state{true, ""})
	b.want("/healthz", 200, "ok")
	local.Store(state{false, "stopping"})
	b.want("/healthz", 503, "stopping\n") // at once, independent of the cache
	b.want("/livez", 200, "ok")           // draining is not dead

	s.Close()
	b.clock.advance(time.Second)
	b.want("/livez", 503, "kube-apiserver /livez: connection refused (stopping)\n")
}

func TestVerbose(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	ok := true
	cfg := config(s, ca.files("health"))
	cfg.Local = func() (bool, string) { return ok, "kube-apiserver: starting" }
	cfg.Components = func() []Check {
		return []Check{
			{Name: "etcd", OK: true},
			{Name: "kube-scheduler", OK: true, Reason: "standby"},
			{Name: "kube-controller-manager", Reason: "starting"},
			{Name: "rbac-seed"},
		}
	}
	b := start(t, cfg)
	const components = "[+]etcd ok\n[+]kube-scheduler ok: standby\n[-]kube-controller-manager starting\n[-]rbac-seed failed\n"

	b.want("/readyz?verbose", 200, components+
		"[+]kube-apiserver/ping ok\n[+]kube-apiserver/etcd ok\n"+
		"[+]kube-apiserver/poststarthook/rbac/bootstrap-roles ok\nreadyz check passed\n")

	s.will(say(500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n"))
	b.clock.advance(time.Second)
	b.want("/healthz?verbose=1", 503, components+
		"[+]kube-apiserver/ping ok\n[-]kube-apiserver/etcd failed\n"+
		"healthz check failed: kube-apiserver /readyz: 500: etcd failed\n")

	ok = false
	b.want("/readyz?verbose", 503, components+"readyz check failed: kube-apiserver: starting\n")
}

// TestRotation replaces the files under a running bridge: the client certificate,
// half of it, then everything with the CA.
func TestRotation(t *testing.T) {
	one, two := newCA(t), newCA(t)
	s1, s2 := newAPIServer(t, one.server(time.Hour)), newAPIServer(t, two.server(time.Hour))
	f := one.files("first")
	b := start(t, config(s1, f))
	ask := func(code int) {
		t.Helper()
		b.clock.advance(time.Second)
		if resp, body := b.do("GET", "/healthz", ""); resp.StatusCode != code {
			t.Fatalf("got %d %q; want %d", resp.StatusCode, body, code)
		}
	}
	ask(200)
	f.write(one, one, "second")
	ask(200)
	if got := s1.lastPeer(); got != "second" {
		t.Errorf("client certificate of %q; want the new one", got)
	}

	cert, _ := one.issue("third", time.Hour)
	if err := os.WriteFile(f.cert, cert, 0o600); err != nil { // not its key's
		t.Fatal(err)
	}
	ask(200)
	if got := s1.lastPeer(); got != "second" {
		t.Errorf("client certificate of %q; want the last good one", got)
	}

	b.ready.up.addr = s2.Listener.Addr().String() // the apiserver after its own rotation
	ask(503)
	f.write(two, two, "fourth")
	ask(200)
	if got := s2.lastPeer(); got != "fourth" {
		t.Errorf("client certificate of %q; want that of the new CA", got)
	}
}

// TestSlowloris fills the bridge with connections that never finish a request.
func TestSlowloris(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	b := start(t, config(s, ca.files("health")), func(b *Bridge) {
		b.conns = conns.New(4)
		b.headerTimeout = time.Hour // or some end by themselves
	})
	var hoard []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		hoard = append(hoard, c)
	}
	b.want("/healthz", 200, "ok")
	if got := b.stats().Cut; got != 17 {
		t.Errorf("%d connections cut; want 17: 20 and the asker's, less 4", got)
	}
	hoard[0].SetReadDeadline(time.Now().Add(patience))
	if _, err := hoard[0].Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("read of the oldest: %v; want it closed", err)
	}
}

// TestListenerLimits sends requests that are late or too large.
func TestListenerLimits(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	const (
		short = 100 * time.Millisecond
		later = 5 * time.Second // for a header that has to arrive in time
	)
	for name, tt := range map[string]struct {
		timeout    time.Duration
		send, want string
	}{
		"silent":        {short, "", ""},
		"half a header": {short, "GET /healthz HTTP/1.1\r\nHost:", ""},
		"large header":  {time.Hour, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 16<<10) + "\r\n\r\n", "HTTP/1.1 431"},
		"slow body":     {later, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 200"},
	} {
		b := start(t, config(s, ca.files("health")), func(b *Bridge) { b.headerTimeout = tt.timeout })
		c, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, tt.send)
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if !strings.HasPrefix(line, tt.want) {
			t.Errorf("%s: got %q; want %q", name, line, tt.want)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if os.IsTimeout(err) {
			t.Errorf("%s: still open", name)
		}
	}
}

// TestNothingLeft stops a bridge with a probe under way, a client waiting for it, an idle
// connection and a silent one.
func TestNothingLeft(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	b := start(t, config(s, ca.files("health")), func(b *Bridge) { b.headerTimeout = time.Hour }) // the silent one does not end by itself

	keep := &http.Client{Transport: &http.Transport{}, Timeout: patience}
	defer keep.CloseIdleConnections()
	resp, err := keep.Get(b.url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	silent, err := net.Dial("tcp", b.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	release := make(chan struct{})
	s.will(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.WriteHeader(500)
	})
	b.clock.advance(time.Second)
	answered := make(chan string, 1)
	go func() {
		resp, err := client.Get(b.url + "/healthz")
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answered <- fmt.Sprintf("%d %s", resp.StatusCode, body)
	}()
	harness.WaitFor(t, "the probe", patience, func() error { return unless(s.asked.Load() == 2, "not asked twice") })
	stopped := make(chan struct{})
	go func() { b.Stop(); close(stopped) }()
	harness.WaitFor(t, "it listens no more", patience, func() error {
		c, err := net.Dial("tcp", b.Addr().String())
		if err != nil {
			return nil
		}
		return errors.Join(errors.New("it does"), c.Close())
	})
	close(release)
	if got, want := <-answered, "503 kube-apiserver /readyz: 500\n"; got != want {
		t.Errorf("the asker got %q; want %q", got, want)
	}
	<-stopped
	harness.WaitFor(t, "goroutines end", patience, func() error {
		left := goroutines()
		return unless(!strings.Contains(left, "health.(*"), left)
	})
}

// goroutines are the stacks of all but the callers of tests and their helpers.
func goroutines() string {
	buf := make([]byte, 1<<20)
	var left []string
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if !strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "health.(*apiserver)") &&
			!strings.Contains(g, "health.newAPIServer") {
			left = append(left, g)
		}
	}
	return strings.Join(left, "\n\n")
}

// unless returns an error with the text, unless ok.
func unless(ok bool, text string) error {
	if ok {
		return nil
	}
	return errors.New(text)
}

func TestRunErrors(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	taken := s.Listener.Addr().String()
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"address in use":   {func(c *Config) { c.Address = taken }, []string{taken, "address already in use"}},
		"address":          {func(c *Config) { c.Address = "80" }, []string{`address "80"`}},
		"plain target":     {func(c *Config) { c.Target = "http://127.0.0.1:6443" }, []string{"target: want https://"}},
		"target with path": {func(c *Config) { c.Target = "https://127.0.0.1:6443/healthz" }, []string{"target: want https://"}},
		"no CA, half pair": {func(c *Config) { c.CAFile, c.KeyFile = "", "" }, []string{"no CA file", "give both or neither"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(s, ca.files("health"))
			tt.change(&cfg)
			err := New(cfg).Run(t.Context(), func() { t.Error("ready called") })
			if err == nil {
				t.Fatal("Run = nil")
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("Run = %q; want %q in it", err, w)
				}
			}
		})
	}
}

// TestUnconfigured: a bridge with an invalid configuration answers 503.
func TestUnconfigured(t *testing.T) {
	w := httptest.NewRecorder()
	New(Config{}).ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != 503 {
		t.Errorf("got %d; want 503", w.Code)
	}
}

// TestRunAgain: a bridge can be run a second time.
func TestRunAgain(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	b := start(t, config(s, ca.files("health")))
	b.want("/healthz", 200, "ok")
	b.Stop()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready := make(chan struct{})
	result := make(chan error, 1)
	go func() { result <- b.Run(ctx, func() { close(ready) }) }()
	<-ready
	b.clock.advance(time.Second)
	b.url = "http://" + b.Addr().String()
	b.want("/healthz", 200, "ok")
	cancel()
	if err := <-result; err != nil {
		t.Errorf("second Run = %v; want nil", err)
	}
}

// TestLog: a verdict is logged when it changes, and only then.
func TestLog(t *testing.T) {
	ca := newCA(t)
	s := newAPIServer(t, ca.server(time.Hour))
	var lines harness.Log
	cfg := config(s, ca.files("health"))
	cfg.Log = lines.Logger(slog.LevelInfo)
	b := start(t, cfg)
	for _, code := range []int{200, 200, 500, 500, 503, 200} {
		s.will(say(code, "token=hunter2"))
		b.clock.advance(time.Second)
		b.do("GET", "/healthz", "")
	}
	got := lines.String()
	for msg, n := range map[string]int{"msg=listening": 1, "apiserver answers": 2, "apiserver does not pass": 2, "hunter2": 0} {
		if c := strings.Count(got, msg); c != n {
			t.Errorf("%q is logged %d times; want %d:\n%s", msg, c, n, got)
		}
	}
}

var _ interface {
	Name() string
	Run(ctx context.Context, ready func()) error
	http.Handler
} = (*Bridge)(nil)
