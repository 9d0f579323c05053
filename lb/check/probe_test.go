package check

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	c := a.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour),
	})
	a.cert, a.key = c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a key and a certificate for it; the first one is the authority's own.
func (a *authority) sign(t *testing.T, tmpl *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber = big.NewInt(time.Now().UnixNano())
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// server is a certificate for 127.0.0.1 and these names, valid for a time from now.
func (a *authority) server(t *testing.T, valid time.Duration, names ...string) *tls.Config {
	t.Helper()
	c := a.sign(t, &x509.Certificate{
		Subject:  pkix.Name{CommonName: "kube-apiserver"},
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(valid),
	})
	return &tls.Config{Certificates: []tls.Certificate{c}}
}

// serveHTTP runs an HTTPS server.
func serveHTTP(t *testing.T, conf *tls.Config, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = conf
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// listen opens a port that accepts by itself only as the kernel does.
func listen(t *testing.T) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

// serveRaw hands each connection to f, and closes it when f returns.
func serveRaw(t *testing.T, f func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, addr := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(t.Context(), func() { c.Close() })()
				f(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return addr
}

// serveTLS is serveRaw with a handshake and a request, then the raw answer; hang keeps the
// connection open afterwards until the client closes it.
func serveTLS(t *testing.T, conf *tls.Config, hang bool, answer string) netip.AddrPort {
	return serveRaw(t, func(c net.Conn) {
		s := tls.Server(c, conf)
		if _, err := http.ReadRequest(bufio.NewReader(s)); err != nil {
			return
		}
		io.WriteString(s, answer)
		if hang {
			io.Copy(io.Discard, s)
		}
	})
}

// status is a handler with one answer.
func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// endless returns a handler with an endless body.
func endless(code int, line string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(code)
		for {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
	}
}

// fullBacklog is a port where the kernel answers no further SYN.
func fullBacklog(t *testing.T) netip.AddrPort {
	t.Helper()
	l, addr := listen(t)
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) })
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr.String()) // the only one that the queue holds
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	await(t, "the connection is in the queue", func() bool {
		var info *unix.TCPInfo
		raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
		return err == nil && info.Unacked > info.Sacked // of a listener: those in the queue, and its size
	})
	return addr
}

func closedPort(t *testing.T) netip.AddrPort {
	l, addr := listen(t)
	l.Close()
	return addr
}

// probeOnce is one check, with the deadline that Run would give it.
func probeOnce(p *prober) Result {
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Timeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if l := p.ask(deadline); l != nil {
		r, told := Result{}, false
		select {
		case got := <-l.answers:
			r, told = p.answered(got)
		case <-l.done:
			r, told = p.answered(reply{err: io.EOF})
		case <-ctx.Done():
			r, told = p.unanswered(), true
		}
		if told {
			return r
		}
	}
	return p.probe(ctx)
}

func fixed(a netip.AddrPort) func() (netip.AddrPort, error) {
	return func() (netip.AddrPort, error) { return a, nil }
}

func TestProbe(t *testing.T) {
	const (
		year  = 365 * 24 * time.Hour
		short = 500 * time.Millisecond // for those that do time out
		later = 5 * time.Second        // for those that do so after a handshake, in which all of these have a part
		long  = time.Minute            // for those that must not
	)
	ca, other := newAuthority(t), newAuthority(t)
	good := ca.server(t, year, "kubernetes")
	client := ca.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "check"}, NotAfter: time.Now().Add(time.Hour)})
	wantCert := good.Clone()
	wantCert.ClientAuth, wantCert.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	const kubeFailing = "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]shutdown failed: reason withheld\nreadyz check failed\n"

	for _, tt := range []struct {
		name    string
		addr    func(t *testing.T) netip.AddrPort
		change  func(*Config)
		timeout time.Duration
		kind    Kind
		err     string // is in Err
	}{
		{name: "ok", kind: KindOK,
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(200, "ok")) }},
		{name: "by name", kind: KindOK, change: func(c *Config) { c.ServerName = "kubernetes" },
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(200, "ok")) }},
		{name: "body without end", kind: KindOK,
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, endless(200, "more\n")) }},
		{name: "body that does not come", kind: KindOK,
			addr: func(t *testing.T) netip.AddrPort {
				return serveTLS(t, good, true, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
			}},

		{name: "etcd is away", kind: KindNotReady, err: "[-]etcd failed: reason withheld",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(500, kubeFailing)) }},
		{name: "503 with a foreign body", kind: KindNotReady, err: "GET /readyz: 503 Service Unavailable",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(503, "password=hunter2")) }},
		{name: "429", kind: KindNotReady, err: "429 Too Many Requests",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(429, "")) }},
		{name: "500 with a body without end", kind: KindNotReady, err: "500 Internal",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, endless(500, "[+]more ok\n")) }},
		{name: "500 with a line without end", kind: KindNotReady, err: "500 Internal",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, endless(500, "[-]more")) }},
		{name: "500 and the rest does not come", kind: KindNotReady, err: "[-]etcd failed", timeout: later,
			addr: func(t *testing.T) netip.AddrPort {
				return serveTLS(t, good, true, "HTTP/1.1 500 No\r\nContent-Length: 900\r\n\r\n[+]ping ok\n[-]etcd failed: x\n")
			}},
		{name: "500 and nothing of the body comes", kind: KindNotReady, err: "500 Internal", timeout: later,
			addr: func(t *testing.T) netip.AddrPort {
				return serveTLS(t, good, true, "HTTP/1.1 500 No\r\nContent-Length: 900\r\n\r\n")
			}},

		{name: "401", kind: KindBadStatus, err: "401 Unauthorized: anonymous access to /readyz is off; the checks need a client certificate",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(401, "")) }},
		{name: "403", kind: KindBadStatus, err: "403 Forbidden: anonymous access to /readyz is off",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(403, "")) }},
		{name: "403 with a certificate", kind: KindBadStatus, err: "the client certificate of the checks does not allow it",
			change: func(c *Config) { c.Certificate = &client },
			addr:   func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(403, "")) }},
		{name: "404", kind: KindBadStatus, err: "GET /readyz: 404 Not Found",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, http.NotFound) }},
		{name: "redirect is not followed", kind: KindBadStatus, err: "302",
			addr: func(t *testing.T) netip.AddrPort {
				return serveHTTP(t, good, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusFound) })
			}},
		{name: "204", kind: KindBadStatus, err: "204 No Content",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(204, "")) }},
		{name: "no HTTP", kind: KindBadStatus, err: "not HTTP",
			addr: func(t *testing.T) netip.AddrPort { return serveTLS(t, good, true, "220 mail.example.com ESMTP\r\n") }},
		{name: "header without end", kind: KindBadStatus, err: "not HTTP",
			addr: func(t *testing.T) netip.AddrPort {
				return serveTLS(t, good, true, "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", 20000))
			}},

		{name: "wrong CA", kind: KindBadCert, err: "x509: certificate signed by unknown authority",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, other.server(t, year), status(200, "ok")) }},
		{name: "wrong CA, unverified", kind: KindOK, change: func(c *Config) { c.Roots = nil },
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, other.server(t, year), status(200, "ok")) }},
		{name: "expired", kind: KindBadCert, err: "expired",
			addr: func(t *testing.T) netip.AddrPort {
				return serveHTTP(t, ca.server(t, -time.Hour), status(200, "ok"))
			}},
		{name: "wrong name", kind: KindBadCert, err: "valid for kubernetes, not elsewhere", change: func(c *Config) { c.ServerName = "elsewhere" },
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, good, status(200, "ok")) }},
		{name: "client certificate missing", kind: KindBadCert, err: "rejects the client certificate of the checks",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, wantCert, status(200, "ok")) }},
		{name: "client certificate shown", kind: KindOK, change: func(c *Config) { c.Certificate = &client },
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, wantCert, status(200, "ok")) }},

		{name: "plain HTTP", kind: KindTLSError, err: "it speaks plain HTTP",
			addr: func(t *testing.T) netip.AddrPort {
				s := httptest.NewServer(status(200, "ok"))
				t.Cleanup(s.Close)
				return netip.MustParseAddrPort(s.Listener.Addr().String())
			}},
		{name: "no TLS", kind: KindTLSError, err: "does not look like a TLS handshake",
			addr: func(t *testing.T) netip.AddrPort {
				return serveRaw(t, func(c net.Conn) { io.WriteString(c, "220 mail.example.com ESMTP\r\n"); io.Copy(io.Discard, c) })
			}},
		{name: "old TLS", kind: KindTLSError, err: "protocol version",
			addr: func(t *testing.T) netip.AddrPort { return serveHTTP(t, old, status(200, "ok")) }},
		{name: "closes", kind: KindTLSError, err: "no TLS answer: EOF",
			addr: func(t *testing.T) netip.AddrPort {
				return serveRaw(t, func(c net.Conn) { c.Read(make([]byte, 4096)); c.(*net.TCPConn).CloseWrite(); io.Copy(io.Discard, c) })
			}},
		{name: "resets", kind: KindTLSError, err: "connection reset by peer",
			addr: func(t *testing.T) netip.AddrPort {
				return serveRaw(t, func(c net.Conn) { c.Read(make([]byte, 1)); c.(*net.TCPConn).SetLinger(0) })
			}},
		{name: "closes instead of an answer", kind: KindTLSError, err: "no answer to GET /readyz",
			addr: func(t *testing.T) netip.AddrPort { return serveTLS(t, good, false, "") }},
		{name: "closes in the header", kind: KindTLSError, err: "no answer to GET /readyz",
			addr: func(t *testing.T) netip.AddrPort { return serveTLS(t, good, false, "HTTP/1.1 200 OK\r\nA: b\r\n") }},

		{name: "silent", kind: KindTimeout, err: "no TLS answer within ", timeout: short,
			addr: func(t *testing.T) netip.AddrPort { return serveRaw(t, func(c net.Conn) { io.Copy(io.Discard, c) }) }},
		{name: "stopped process", kind: KindTimeout, err: "no TLS answer within ", timeout: short,
			addr: func(t *testing.T) netip.AddrPort { _, a := listen(t); return a }},
		{name: "silent after TLS", kind: KindTimeout, err: "no answer to GET /readyz within ", timeout: later,
			addr: func(t *testing.T) netip.AddrPort { return serveTLS(t, good, true, "") }},
		{name: "silent in the header", kind: KindTimeout, err: "no answer to GET /readyz within ", timeout: later,
			addr: func(t *testing.T) netip.AddrPort { return serveTLS(t, good, true, "HTTP/1.1 200 OK\r\n") }},
		{name: "black hole", kind: KindTimeout, err: "no connection within ", timeout: short, addr: fullBacklog},
		{name: "closed port", kind: KindConnectError, err: "connect: connection refused", addr: closedPort},

		{name: "tcp", kind: KindOK, change: func(c *Config) { c.Mode = TCP },
			addr: func(t *testing.T) netip.AddrPort { _, a := listen(t); return a }},
		{name: "tcp to a closed port", kind: KindConnectError, err: "refused", change: func(c *Config) { c.Mode = TCP }, addr: closedPort},
		{name: "tcp to a black hole", kind: KindTimeout, err: "no connection", timeout: short, change: func(c *Config) { c.Mode = TCP }, addr: fullBacklog},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Mode: HTTPS, Path: "/readyz", Timeout: long, Roots: ca.pool}
			if tt.timeout != 0 {
				cfg.Timeout = tt.timeout
			}
			if tt.change != nil {
				tt.change(&cfg)
			}
			p := &prober{cfg: cfg, addr: fixed(tt.addr(t))}
			defer p.drop()
			begun := time.Now()
			r := probeOnce(p)
			took := time.Since(begun)
			if r.Kind != tt.kind || !strings.Contains(r.Err, tt.err) || (r.Err == "") != (tt.kind == KindOK) || r.NoVerdict != "" {
				t.Errorf("got %s: %q %q; want %s: %q", r.Kind, r.Err, r.NoVerdict, tt.kind, tt.err)
			}
			if strings.Contains(r.Err, "hunter2") {
				t.Errorf("got a body in %q", r.Err)
			}
			checkPhases(t, r, cfg, took)
		})
	}
}

// checkPhases tells whether a result's times and its failure belong to one phase, and
// whether the times fit into the time that the check took.
func checkPhases(t *testing.T, r Result, cfg Config, took time.Duration) {
	t.Helper()
	connect := strings.HasPrefix(r.Err, "no connection") || r.Kind == KindConnectError
	if r.ConnectPhase != connect {
		t.Errorf("got ConnectPhase %v of %s: %s", r.ConnectPhase, r.Kind, r.Err)
	}
	if r.Connect <= 0 || (r.TLS > 0) == (connect || cfg.Mode == TCP) || r.HTTP > 0 && r.TLS == 0 {
		t.Errorf("got times %v, %v, %v", r.Connect, r.TLS, r.HTTP)
	}
	if answered := r.Kind.verdict() != failed && cfg.Mode == HTTPS; answered && r.CertExpiry.IsZero() {
		t.Errorf("got no CertExpiry with %s", r.Kind)
	}
	if sum := r.Connect + r.TLS + r.HTTP; sum > took {
		t.Errorf("got phases of %v in a check that took %v", sum, took)
	}
}

func TestProbeWithoutAddress(t *testing.T) {
	p := &prober{cfg: defaults, addr: func() (netip.AddrPort, error) {
		return netip.AddrPort{}, errors.New("lookup a.example:\nno such host")
	}}
	want := Result{Kind: KindConnectError, ConnectPhase: true, Err: "lookup a.example: no such host"}
	if got := probeOnce(p); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRequest(t *testing.T) {
	ca := newAuthority(t)
	got := make(chan string, 2)
	addr := serveHTTP(t, ca.server(t, time.Hour, "kubernetes"), func(w http.ResponseWriter, r *http.Request) {
		got <- fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Proto, " ", r.Host, " ", r.UserAgent(), " close:", r.Close)
	})
	for _, name := range []string{"", "kubernetes"} {
		p := &prober{cfg: Config{Mode: HTTPS, Path: "/readyz?exclude=etcd", Timeout: 10 * time.Second, ServerName: name}, addr: fixed(addr)}
		probeOnce(p)
		p.drop()
		host := addr.Addr().String()
		if name != "" {
			host = name
		}
		want := fmt.Sprintf("GET /readyz?exclude=etcd HTTP/1.1 %s:%d kthwd-lb close:false", host, addr.Port())
		if got := <-got; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestShortage(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{
		syscall.EMFILE: true, syscall.ENFILE: true, syscall.EADDRNOTAVAIL: true, syscall.EADDRINUSE: true, syscall.EAGAIN: true,
		syscall.ECONNREFUSED: false, syscall.EHOSTUNREACH: false, syscall.ENETUNREACH: false,
	} {
		err := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}
		if got := shortage(err) == errno; got != want {
			t.Errorf("%v: got %v, want %v", errno, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"plain":                   "plain",
		" a\r\n\tb\x00\x1b[31mc ": "a b [31mc",
		"right\u202eleft":         "right left",
		"\xff":                    "\ufffd",
		strings.Repeat("ä", 201):  strings.Repeat("ä", 199) + "…",
		strings.Repeat("x", 1e6):  strings.Repeat("x", 199) + "…",
	} {
		if got := printable(in); got != want {
			t.Errorf("%.20q: got %q, want %q", in, got, want)
		}
	}
}

// End to end, with a real backend that is ready, falls and rises, and with reports from
// many goroutines.
func TestRun(t *testing.T) {
	ca := newAuthority(t)
	var code atomic.Int64
	code.Store(200)
	addr := serveHTTP(t, ca.server(t, time.Hour), func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(int(code.Load())) })
	changes := make(chan Status, 1000)
	cfg := Config{Mode: HTTPS, Path: "/readyz", Interval: 20 * time.Millisecond, Timeout: 10 * time.Second, Fall: 2, Rise: 2, Roots: ca.pool}
	c := New(cfg, fixed(addr), Observer{Changed: func(s Status) { changes <- s }})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for pace := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-pace.C {
				c.ConnectFailed("refused")
				c.ConnectOK()
				c.Status()
			}
		})
	}
	for _, step := range []struct {
		code int64
		want State
	}{{200, Ready}, {500, NotReady}, {200, Ready}} {
		code.Store(step.code)
		awaitState(t, changes, step.want)
	}
}

func awaitState(t *testing.T, changes <-chan Status, want State) {
	t.Helper()
	timeout := time.After(time.Minute)
	var last Status
	for {
		select {
		case last = <-changes:
			if last.State == want {
				return
			}
		case <-timeout:
			t.Fatalf("not %s: got %+v", want, last)
		}
	}
}

// Run returns in the middle of a check that hangs, and leaves nothing behind.
func TestRunLeavesNoGoroutine(t *testing.T) {
	arrived := make(chan struct{}, 1)
	hang := func(c net.Conn) { arrived <- struct{}{}; io.Copy(io.Discard, c) }
	conf := newAuthority(t).server(t, time.Hour)
	for name, addr := range map[string]netip.AddrPort{
		"connect": fullBacklog(t),
		"TLS":     serveRaw(t, func(c net.Conn) { c.Read(make([]byte, 1)); hang(c) }),
		"HTTP":    serveRaw(t, func(c net.Conn) { s := tls.Server(c, conf); s.Read(make([]byte, 1)); hang(c) }),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cfg := Config{Mode: HTTPS, Path: "/readyz", Interval: time.Second, Timeout: time.Hour, Fall: 2, Rise: 2}
			c := New(cfg, func() (netip.AddrPort, error) {
				if name == "connect" {
					arrived <- struct{}{}
				}
				return addr, nil
			}, Observer{})
			done := make(chan struct{})
			go func() { c.Run(ctx); close(done) }()
			<-arrived
			cancel()
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Fatal("Run did not return")
			}
			awaitGone(t, "check.(*prober)")
		})
	}
}

// awaitGone waits until no goroutine has the function on its stack.
func awaitGone(t *testing.T, function string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		var b strings.Builder
		pprof.Lookup("goroutine").WriteTo(&b, 1)
		if !strings.Contains(b.String(), function) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("still there:\n%s", b.String())
		}
	}
}
