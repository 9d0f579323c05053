package observe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// shared are the files that the controllers of one cluster have in common.
var shared = []string{"ca.pem", "ca-key.pem", "service-account.pem", "service-account-key.pem", "front-proxy-ca.pem", "front-proxy-ca-key.pem", "etcd-ca.pem", "etcd-ca-key.pem", "encryption-config.yaml"}

// threeControllers are a cluster on one address, each with ports of its own.
func threeControllers(t *testing.T) (all []*kthwtest.Controller) {
	t.Helper()
	var ports [3]kthwtest.Ports
	var peers, dirs []string
	for i := range ports {
		ports[i] = kthwtest.FreePorts(t, "127.0.0.1")
		dirs = append(dirs, filepath.Join(t.TempDir(), "data"))
		peers = append(peers, fmt.Sprintf("c%d=https://127.0.0.1:%d", i, ports[i].EtcdPeer))
	}
	for i := range ports {
		if i == 1 {
			shareFiles(t, dirs)
		}
		all = append(all, kthwtest.Start(t, kthwtest.Options{
			Dir: dirs[i], Ports: &ports[i], NoWait: true,
			Args: []string{fmt.Sprintf("--name=c%d", i), "--etcd-arg=initial-cluster=" + strings.Join(peers, ",")},
		}))
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	return all
}

// shareFiles gives the others the files of the cluster that the first one makes.
func shareFiles(t *testing.T, dirs []string) {
	t.Helper()
	for _, dir := range dirs[1:] {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range shared {
			kthwtest.WaitFor(t, name, kthwtest.Soon, func() error {
				data, err := os.ReadFile(filepath.Join(dirs[0], name))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
				}
				return err
			})
		}
	}
}

// balance runs a load balancer before some backends; more are lines of its file.
func balance(t testing.TB, backends []string, more ...string) *kthwtest.Controller {
	t.Helper()
	ports := kthwtest.FreePorts(t, "127.0.0.1")
	lines := append([]string{
		"role: lb", "status-socket: ''", fmt.Sprintf("listen: ['127.0.0.1:%d']", ports.Secure),
		"backend: ['" + strings.Join(backends, "', '") + "']",
	}, more...)
	file := filepath.Join(t.TempDir(), "lb.yaml")
	put(t, file, strings.Join(lines, "\n")+"\n")
	return kthwtest.Start(t, kthwtest.Options{File: file, Ports: &ports})
}

// backend accepts connections, while it is there.
type backend struct {
	address string
	mu      sync.Mutex
	l       net.Listener
}

func startBackend(t *testing.T) *backend {
	b := &backend{address: fmt.Sprintf("127.0.0.1:%d", kthwtest.FreePorts(t, "127.0.0.1").Secure)}
	b.start(t)
	t.Cleanup(b.stop)
	return b
}

func (b *backend) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", b.address)
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.l = l
	b.mu.Unlock()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
}

func (b *backend) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.l.Close()
}

// tlsBackend says that it is ready, with a certificate that can be changed.
type tlsBackend struct {
	address string
	pair    atomic.Pointer[tls.Certificate]
}

func startTLSBackend(t *testing.T, lasts time.Duration) *tlsBackend {
	t.Helper()
	b := &tlsBackend{}
	b.lasts(t, lasts)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }))
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		// Checks resume a session for up to a minute, and see no new certificate then.
		return &tls.Config{SessionTicketsDisabled: true, Certificates: []tls.Certificate{*b.pair.Load()}}, nil
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	b.address = s.Listener.Addr().String()
	return b
}

// lasts gives it a certificate for some time.
func (b *tlsBackend) lasts(t *testing.T, d time.Duration) {
	t.Helper()
	pair := selfSigned(t, d, pkix.Name{CommonName: "test"})
	b.pair.Store(&pair)
}

// selfSigned is a CA, or the certificate of a server, that lasts for some time.
func selfSigned(t *testing.T, lasts time.Duration, subject pkix.Name) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(lasts),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// issue writes a CA that lasts for some time.
func issue(t *testing.T, path string, lasts time.Duration) {
	t.Helper()
	put(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: selfSigned(t, lasts, pkix.Name{CommonName: "test"}).Certificate[0]})))
}
