package status

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	dto "github.com/prometheus/client_model/go"

	"kthwd/appliance/logging"
)

// authority is a CA for the test.
type authority struct {
	t    *testing.T
	dir  string
	name string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	a := &authority{t: t, dir: dir, name: name}
	a.cert, a.key = a.issue(name, true)
	return a
}

// issue writes NAME.pem and NAME-key.pem.
func (a *authority) issue(name string, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: isCA, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := a.cert, a.key
	if isCA {
		template.ExtKeyUsage, template.KeyUsage = nil, x509.KeyUsageCertSign
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(key)
	write(a.t, filepath.Join(a.dir, name+".pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	write(a.t, filepath.Join(a.dir, name+"-key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), 0o600)
	return cert, key
}

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// secretHash is the hash of the password "secret".
var secretHash = func() string {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		panic(err)
	}
	return string(hash)
}()

// Only a client with the right certificate or password is answered.
func TestServerBehindTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t, dir, "ca")
	ca.issue("server", false)
	ca.issue("client", false)
	stranger := newAuthority(t, dir, "other-ca")
	stranger.issue("stranger", false)
	config := write(t, filepath.Join(dir, "web.yaml"), `tls_server_config:
  cert_file: server.pem
  key_file: server-key.pem
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.pem
`, 0o644)
	if w, err := ReadWeb(config); err != nil || !w.TLS || !w.ClientCerts || w.Users || w.CertFile != filepath.Join(dir, "server.pem") {
		t.Errorf("ReadWeb: got %+v, %v", w, err)
	}
	addr := free(t)
	start(t, ServerConfig{Address: addr, Web: config, Report: func() Report { return reports()["ready"] }})

	client := TLSFiles{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "client.pem"), Key: filepath.Join(dir, "client-key.pem")}
	r, err := Client{Addr: "https://" + addr, TLS: client}.Status(t.Context())
	if err != nil || r.PID != 4711 {
		t.Errorf("with the right certificate: got %+v, %v", r, err)
	}
	for name, c := range map[string]struct {
		files TLSFiles
		want  string
	}{
		"no certificate":       {TLSFiles{CA: client.CA}, "certificate required"},
		"a stranger's":         {TLSFiles{CA: client.CA, Cert: filepath.Join(dir, "stranger.pem"), Key: filepath.Join(dir, "stranger-key.pem")}, "certificate"},
		"not the server's CA":  {TLSFiles{CA: filepath.Join(dir, "other-ca.pem"), Cert: client.Cert, Key: client.Key}, "unknown authority"},
		"no such CA":           {TLSFiles{CA: filepath.Join(dir, "missing.pem")}, "no such file"},
		"a key for a CA":       {TLSFiles{CA: filepath.Join(dir, "client-key.pem")}, "no certificate in it"},
		"another's key":        {TLSFiles{CA: client.CA, Cert: client.Cert, Key: filepath.Join(dir, "server-key.pem")}, "private key does not match"},
		"a certificate, alone": {TLSFiles{CA: client.CA, Cert: client.Cert}, "go together"},
	} {
		_, err := Client{Addr: "https://" + addr, TLS: c.files}.Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	resp, err := http.Get("http://" + addr + "/status")
	if err == nil {
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || strings.Contains(string(body), "4711") {
			t.Errorf("plain HTTP: got %d %s", resp.StatusCode, body)
		}
	}
	// A file that is damaged while kthwd runs makes it refuse clients until it is repaired.
	good, _ := os.ReadFile(config)
	write(t, config, "tls_server_config: [", 0o644)
	if _, err := (Client{Addr: "https://" + addr, TLS: client}).Status(t.Context()); err == nil {
		t.Error("with a damaged file: answered")
	}
	write(t, config, string(good), 0o644)
	if _, err := (Client{Addr: "https://" + addr, TLS: client}).Status(t.Context()); err != nil {
		t.Errorf("with a mended file: %v", err)
	}
}

func TestServerBehindPassword(t *testing.T) {
	config := write(t, filepath.Join(t.TempDir(), "web.yaml"), "basic_auth_users:\n  prometheus: "+secretHash+"\n", 0o600)
	if w, err := ReadWeb(config); err != nil || w.TLS || !w.Users {
		t.Errorf("ReadWeb: got %+v, %v", w, err)
	}
	addr := free(t)
	start(t, ServerConfig{Address: addr, Web: config, Report: func() Report { return reports()["ready"] }})
	for auth, want := range map[string]int{"": 401, "prometheus:secret@": 200, "prometheus:wrong@": 401, "nobody:secret@": 401} {
		for _, path := range []string{"/", "/status", "/metrics", "/readyz"} {
			code, body := get(t, "http://"+auth+addr+path)
			if path == "/" && code == 404 { // the page, where there is one
				code = 200
			}
			if code != want || code == 401 && body != "Unauthorized\n" {
				t.Errorf("%s%s: got %d %.100s, want %d", auth, path, code, body, want)
			}
		}
	}
}

func TestBadWebConfiguration(t *testing.T) {
	dir := t.TempDir()
	newAuthority(t, dir, "ca").issue("server", false)
	write(t, filepath.Join(dir, "open-key.pem"), "x", 0o644)
	for name, tt := range map[string]struct{ text, want string }{
		"not YAML":        {"tls_server_config: [", "did not find"},
		"an unknown key":  {"tls: {}\n", "field tls not found"},
		"no key":          {"tls_server_config:\n  cert_file: server.pem\n", "missing one of key or key_file"},
		"no such file":    {"tls_server_config:\n  cert_file: missing.pem\n  key_file: server-key.pem\n", "missing.pem"},
		"another's key":   {"tls_server_config:\n  cert_file: server.pem\n  key_file: ca-key.pem\n", "private key does not match"},
		"a CA, unused":    {"tls_server_config:\n  cert_file: server.pem\n  key_file: server-key.pem\n  client_ca_file: ca.pem\n", "without a Client Auth Policy"},
		"a word":          {"tls_server_config:\n  cert_file: server.pem\n  key_file: server-key.pem\n  client_auth_type: Sometimes\n", "Sometimes"},
		"no hash":         {"basic_auth_users:\n  prometheus: secret\n", "hash"},
		"readable by all": {"basic_auth_users:\n  prometheus: " + secretHash + "\n", "every user can read it"},
	} {
		path := write(t, filepath.Join(dir, "web.yaml"), tt.text, 0o644)
		_, err := ReadWeb(path)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want %q on one line", name, err, tt.want)
		}
	}
	if _, err := ReadWeb(filepath.Join(dir, "missing.yaml")); err == nil {
		t.Error("a missing file: no error")
	}
}

// A scraper that reads nothing holds one answer. With several such scrapers the others
// are rejected at once and do not wait.
func TestSlowScrapers(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	h := limit(2, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-release
		fmt.Fprintln(w, "done")
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	defer s.Close()
	codes := make(chan int, 2)
	for range 2 {
		go func() {
			resp, err := http.Get("http://" + l.Addr().String())
			if err != nil {
				codes <- 0
				return
			}
			resp.Body.Close()
			codes <- resp.StatusCode
		}()
		<-begun
	}
	if code, body := get(t, "http://"+l.Addr().String()); code != 503 || !strings.Contains(body, "try again later") {
		t.Errorf("a third one: got %d %s", code, body)
	}
	close(release)
	for range 2 {
		if code := <-codes; code != 200 {
			t.Errorf("one of the two: got %d", code)
		}
	}
	go func() { <-begun }()
	if code, _ := get(t, "http://"+l.Addr().String()); code != 200 {
		t.Errorf("afterwards: got %d", code)
	}
}

func TestUnknownPaths(t *testing.T) {
	addr := free(t)
	start(t, ServerConfig{Address: addr, Report: func() Report { return reports()["ready"] }, Programs: []Program{{Name: "etcd", Gatherer: empty{}}}})
	for _, path := range []string{"/metrics/kubelet", "/metrics/", "/nothing", "/debug/pprof/", "/log-level", "/metrics/%3Cscript%3E"} {
		code, body := get(t, "http://"+addr+path)
		if code != 404 || !strings.Contains(body, "/metrics/etcd\n") || strings.Contains(body, "\n/debug/pprof") {
			t.Errorf("%s: got %d %s", path, code, body)
		}
	}
	if code, _ := get(t, "http://"+addr+"/metrics/etcd"); code != 200 {
		t.Errorf("/metrics/etcd: got %d", code)
	}
	profiled := free(t)
	start(t, ServerConfig{Address: profiled, Pprof: true, Report: func() Report { return reports()["ready"] }})
	if code, body := get(t, "http://"+profiled+"/debug/pprof/"); code != 200 || !strings.Contains(body, "goroutine") {
		t.Errorf("pprof: got %d %s", code, body)
	}
}

// The scraper's Accept header determines the format.
func TestForms(t *testing.T) {
	addr := free(t)
	start(t, ServerConfig{Address: addr, Report: func() Report { return reports()["ready"] }})
	for accept, want := range map[string]string{
		"": "text/plain; version=0.0.4",
		"application/openmetrics-text; version=1.0.0; charset=utf-8":                                   "application/openmetrics-text",
		"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited": "application/vnd.google.protobuf",
	} {
		req, _ := http.NewRequest(http.MethodGet, "http://"+addr+"/metrics", nil)
		req.Header.Set("Accept", accept)
		req.Header.Set("Accept-Encoding", "gzip")
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, want) || resp.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("Accept %q: got %s, %s", accept, got, resp.Header.Get("Content-Encoding"))
		}
	}
}

// Two load balancers must not share an address just because one requires a certificate
// and the other therefore cannot identify it.
func TestServerAddressInUseBehindTLS(t *testing.T) {
	dir := t.TempDir()
	newAuthority(t, dir, "ca").issue("server", false)
	config := write(t, filepath.Join(dir, "web.yaml"), "tls_server_config: {cert_file: server.pem, key_file: server-key.pem, client_auth_type: RequireAnyClientCert}\n", 0o644)
	addr := free(t)
	shared := func(Report) bool { return false }
	start(t, ServerConfig{Address: addr, Web: config, Shared: shared, Report: func() Report { return Report{PID: 1} }})
	if _, err := NewServer(ServerConfig{Address: addr, Web: config, Shared: shared, Report: func() Report { return Report{} }, Logs: quiet()}).listen(t.Context()); err == nil {
		t.Error("a second one: no error")
	}
	l, err := NewServer(ServerConfig{Address: addr, Web: config, Shared: shared, TakeOver: true, Report: func() Report { return Report{} }, Logs: quiet()}).listen(t.Context())
	if err != nil {
		t.Fatalf("one that takes over: %v", err)
	}
	l.Close()
}

// empty gathers nothing.
type empty struct{}

func (empty) Gather() ([]*dto.MetricFamily, error) { return nil, nil }

func quiet() *logging.Logs {
	logs, _ := logging.New(io.Discard, logging.Text, nil)
	return logs
}
