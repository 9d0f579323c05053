package lb

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kthwd/lb/check"
	"kthwd/test/lbtest"
)

// apiServer is a TLS server with /readyz.
type apiServer struct {
	t      *testing.T
	addr   string
	status atomic.Int32 // answered to /readyz
	delay  atomic.Int64 // before that answer
	failed atomic.Value // the check of its own that fails then; "" for none
	paths  sync.Map     // requested paths

	mu      sync.Mutex
	resumed chan bool // closed while the server is not suspended
	http    *httptest.Server
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	return newAPIServerAt(t, "127.0.0.1:0")
}

func newAPIServerAt(t *testing.T, address string) *apiServer {
	t.Helper()
	watchLeaks(t)
	a := &apiServer{t: t, addr: address, resumed: make(chan bool)}
	close(a.resumed)
	a.status.Store(200)
	a.failed.Store("")
	a.start()
	t.Cleanup(func() { a.resume(); a.kill() })
	return a
}

// start makes it listen, at the same address each time.
func (a *apiServer) start() {
	a.t.Helper()
	ln, err := net.Listen("tcp", a.addr)
	must(a.t, err)
	a.addr = ln.Addr().String()
	a.http = &httptest.Server{
		Listener: stoppable{ln, a},
		Config:   &http.Server{Handler: a, ErrorLog: log.New(io.Discard, "", 0)},
	}
	a.http.StartTLS()
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/who" {
		fmt.Fprint(w, a.addr)
		return
	}
	a.paths.Store(r.URL.Path, true)
	if d := time.Duration(a.delay.Load()); d > 0 {
		select { // the check has given up
		case <-time.After(d):
		case <-r.Context().Done():
		}
	}
	w.WriteHeader(int(a.status.Load()))
	if name := a.failed.Load(); name != "" {
		fmt.Fprintf(w, "[+]ping ok\n[-]%s failed: reason withheld\n", name)
	}
}

// fail makes a check of its own fail from now on.
func (a *apiServer) fail(check string) {
	a.failed.Store(check)
	a.status.Store(500)
}

// refuse makes it stop listening; its connections stay.
func (a *apiServer) refuse() { a.http.Listener.Close() }

// kill is refuse, and closes its connections.
func (a *apiServer) kill() {
	a.http.Listener.Close()
	a.http.CloseClientConnections()
	a.http.Close()
}

// suspend stops it from answering, while its kernel accepts connections.
func (a *apiServer) suspend() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resumed = make(chan bool)
}

func (a *apiServer) resume() {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.resumed:
	default:
		close(a.resumed)
	}
}

func (a *apiServer) running() chan bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.resumed
}

// caFile returns the file of the CA that signed its certificate.
func (a *apiServer) caFile() string {
	a.t.Helper()
	name := filepath.Join(a.t.TempDir(), "ca.pem")
	must(a.t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.http.Certificate().Raw}), 0o600))
	return name
}

// stoppable accepts connections that are not read while the server is suspended.
type stoppable struct {
	net.Listener
	a *apiServer
}

func (s stoppable) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	return stoppableConn{c, s.a}, err
}

type stoppableConn struct {
	net.Conn
	a *apiServer
}

func (c stoppableConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	<-c.a.running()
	return n, err
}

// visit opens a TLS connection through r and asks for its backend.
type visit struct {
	*tls.Conn
	in *bufio.Reader
}

func (r *rig) visit() *visit {
	r.t.Helper()
	c := tls.Client(r.dial(), &tls.Config{InsecureSkipVerify: true})
	return &visit{c, bufio.NewReader(c)}
}

// hangUp ends the connection without TLS's close_notify: a backend that reads one ends its
// own stream, and on a busy machine before the client's is ended.
func (v *visit) hangUp() { _ = v.NetConn().Close() }

func (v *visit) who() (string, error) {
	if _, err := io.WriteString(v, "GET /who HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(v.in, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// at fails unless the connection is to that backend.
func (v *visit) at(t *testing.T, a *apiServer) {
	t.Helper()
	who, err := v.who()
	must(t, err, equal("backend", who, a.addr))
}

// cut waits until the connection has ended.
func (v *visit) cut(t *testing.T) {
	t.Helper()
	if err := expectGone(v.NetConn()); err != nil {
		t.Fatal(err)
	}
}

// checkedConfig returns a configuration with frequent checks of backends. They have as much
// time as they need, so that a busy machine makes no backend look bad; see checksTimeOut.
func checkedConfig(backends ...*apiServer) Config {
	c := testConfig()
	for _, a := range backends {
		c.Backends = append(c.Backends, a.addr)
	}
	c.Check, c.CheckInterval, c.CheckTimeout = CheckHTTPS, 40*time.Millisecond, patience
	c.Balance = FirstAlive
	return c
}

// checksTimeOut is checkedConfig for backends that do not answer. A check that this process
// was too late for by half of the timeout proves nothing, so a short one takes long on a
// busy machine.
func checksTimeOut(backends ...*apiServer) Config {
	c := checkedConfig(backends...)
	c.CheckTimeout = 500 * time.Millisecond
	return c
}

func (r *rig) state(a *apiServer) string {
	for _, b := range r.Status().Backends {
		if b.Address == a.addr {
			return b.State
		}
	}
	return "none"
}

func (r *rig) awaitState(a *apiServer, want check.State) {
	r.t.Helper()
	eventually(r.t, "a backend's state", func() error { return equal("state", r.state(a), string(want)) })
}

func (r *rig) awaitTier(a *apiServer, want int32) {
	r.t.Helper()
	b := r.backend(a.addr)
	eventually(r.t, "a backend's tier", func() error { return equal("tier", b.tier.Load(), want) })
}

func TestVerdictTier(t *testing.T) {
	for _, tt := range []struct {
		st   check.Status
		want int32
	}{
		{check.Status{State: check.Unknown}, tierHopeful},
		{check.Status{State: check.Unknown, Suspect: true}, tierDoubted},
		{check.Status{State: check.Ready, Connectable: true}, tierReady},
		{check.Status{State: check.Ready, Connectable: true, Suspect: true}, tierDoubted},
		{check.Status{State: check.Ready, Suspect: true}, tierBad},
		{check.Status{State: check.NotReady, Connectable: true, Suspect: true}, tierDoubted},
		{check.Status{State: check.NotReady, Connectable: true}, tierHopeful},
		{check.Status{State: check.Ready, Connectable: true, Suspect: true, Leaving: true}, tierLeaving},
		{check.Status{State: check.NotReady, Connectable: true, Suspect: true, Leaving: true}, tierLeaving},
		{check.Status{State: check.NotReady, Suspect: true, Leaving: true}, tierBad},
		{check.Status{State: check.Dead, Connectable: true, Suspect: true, Leaving: true}, tierBad},
		{check.Status{State: check.NotReady, Suspect: true}, tierBad},
		{check.Status{State: check.Dead, Connectable: true, Suspect: true}, tierBad},
		{check.Status{State: check.Dead, Suspect: true}, tierBad},
		{check.Status{State: check.Dead, Connectable: true}, tierHopeful},
	} {
		if got := tierOf(tt.st); got != tt.want {
			t.Errorf("%+v: got tier %d, want %d", tt.st, got, tt.want)
		}
	}
}

// A doubt about a backend ends with the next check that passes.
func TestDoubtIsTakenBack(t *testing.T) {
	a := newAPIServer(t)
	r := run(t, checkedConfig(a), Options{})
	r.awaitTier(a, tierReady)
	a.suspend() // no check passes meanwhile
	b := r.backend(a.addr)
	b.suspect("for a test")
	if b.tier.Load() == tierReady {
		t.Error("the doubt is not heard")
	}
	a.resume()
	r.awaitTier(a, tierReady)
}

// Without checks, each backend is ready from the start until a connection fails.
func TestCheckNone(t *testing.T) {
	p := newPeer(t)
	cfg := testConfig(p.addr)
	cfg.CheckInterval, cfg.CheckTimeout = time.Hour, time.Hour // run does not wait as long
	r := run(t, cfg, Options{})
	st := r.Status()
	must(t, equal("state", st.Backends[0].State, "ready"), equal("fail open", st.FailOpen, false))
}

func TestCheckTCP(t *testing.T) {
	p, dead := newPeer(t), unused(t)
	cfg := testConfig(dead, p.addr)
	cfg.Check = CheckTCP
	r := run(t, cfg, Options{})
	eventually(t, "states", func() error {
		st := r.Status().Backends
		return errors.Join(equal("first", st[0].State, "dead"), equal("second", st[1].State, "ready"))
	})
}

// An address of one link is checked, and its clients are served, on the link in its zone.
func TestZones(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network of its own")
	}
	if !lbtest.OwnMachine(t) {
		return
	}
	for link, at := range map[string]string{"lan0": "fe80::50", "Lan1": "fe80::51"} {
		for _, argv := range [][]string{
			{"link", "set", "lo", "up"}, {"link", "add", link, "type", "veth", "peer", "name", link + "p"}, {"link", "set", link + "p", "up"}, {"link", "set", link, "up"},
			{"address", "add", at + "/64", "dev", link, "nodad"},
		} {
			if out, err := exec.Command("ip", argv...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v\n%s", strings.Join(argv, " "), err, out)
			}
		}
	}
	for _, host := range []string{"fe80::50%lan0", "fe80::51%Lan1"} {
		a := newAPIServerAt(t, net.JoinHostPort(host, "0"))
		_, port, err := net.SplitHostPort(a.addr)
		must(t, err)
		a.addr = net.JoinHostPort(host, port) // package net may not know the link yet
		r := run(t, checkedConfig(a), Options{})
		r.awaitState(a, check.Ready)
		r.visit().at(t, a)
		a.status.Store(500)
		r.awaitState(a, check.NotReady)
	}
}

func TestBadCertificate(t *testing.T) {
	a := newAPIServer(t)
	cfg := checkedConfig(a)
	cfg.BackendCA = a.caFile()
	r := run(t, cfg, Options{})
	r.awaitState(a, check.Ready)
	must(t, equal("verified", r.Status().Verified, true))

	cfg = *r.cfg.Load()
	cfg.BackendCA = otherCA(t)
	must(t, r.Reload(cfg))
	eventually(t, "bad_cert in status", func() error {
		b := r.Status().Backends[0]
		if b.State != "not_ready" || b.LastCheck != "bad_cert" || !strings.HasPrefix(b.Reason, "bad_cert: x509") {
			return fmt.Errorf("got %s, %s, %q", b.State, b.LastCheck, b.Reason)
		}
		return nil
	})
	must(t, equal("fail open", r.Status().FailOpen, true))
	r.visit().at(t, a) // no better backend is left
}

// otherCA returns the file of a CA that signed none of the certificates.
func otherCA(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must(t, err)
	name := filepath.Join(t.TempDir(), "other.pem")
	must(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return name
}
