package attack

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// cluster is a controller, its CA and etcd's with their keys. An attacker does not have
// the keys: they are used to make certificates for every kind of client.
type cluster struct {
	*kthwtest.Controller
	ca, etcdCA authority
}

// authority is a CA with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// start runs a controller at an address that the attacker reaches.
func start(t *testing.T, o kthwtest.Options) *cluster {
	t.Helper()
	if o.Address == "" {
		o.Address = here
	}
	return clusterOf(t, kthwtest.Start(t, o))
}

// shared is for the attacks that leave nothing behind when they are refused.
var shared = kthwtest.Shared{Tests: 5}

// use returns a controller that tests share, but one of its own where each attack succeeds.
func use(t *testing.T) *cluster {
	t.Helper()
	if reviewed {
		return start(t, kthwtest.Options{})
	}
	return clusterOf(t, shared.Use(t, kthwtest.Options{Address: here}))
}

func clusterOf(t *testing.T, controller *kthwtest.Controller) *cluster {
	t.Helper()
	c := &cluster{Controller: controller, ca: readCA(t, controller.Dir, "ca")}
	if !reviewed {
		c.etcdCA = readCA(t, c.Dir, "etcd-ca")
	}
	return c
}

// ofController is the certificate that etcd's ports accept.
func (c *cluster) ofController(t *testing.T) tls.Certificate {
	t.Helper()
	if c.etcdCA.cert == nil {
		return c.pair(t, "kubernetes")
	}
	return c.pair(t, "etcd")
}

func readCA(t *testing.T, dir, name string) authority {
	t.Helper()
	block := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := pem.Decode(data)
		if b == nil {
			t.Fatalf("%s holds no PEM", name)
		}
		return b.Bytes
	}
	ca, err := x509.ParseCertificate(block(name + ".pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParseECPrivateKey(block(name + "-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return authority{ca, key}
}

// sign issues a certificate, for a client and a server.
func (ca authority) sign(t *testing.T, subject pkix.Name, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: subject, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pair reads a certificate and its key from the data directory.
func (c *cluster) pair(t *testing.T, name string) tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.Dir, name+".pem"), filepath.Join(c.Dir, name+"-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// writePEM writes a certificate and its key to two files.
func writePEM(t *testing.T, cert tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "EC PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// ask sends a request with a client certificate to a port of the controller, from the attacker's
// machine.
func (c *cluster) ask(ctx context.Context, cert tls.Certificate, method string, port int, path string, body []byte) (int, string, error) {
	return c.send(ctx, cert, method, port, path, body, nil)
}

// patch merges a JSON object into one of the API server's.
func (c *cluster) patch(ctx context.Context, cert tls.Certificate, path, body string) (int, string, error) {
	return c.send(ctx, cert, http.MethodPatch, c.Ports.Secure, path, []byte(body), http.Header{"Content-Type": {"application/merge-patch+json"}})
}

func (c *cluster) send(ctx context.Context, cert tls.Certificate, method string, port int, path string, body []byte, header http.Header) (int, string, error) {
	return c.sendFrom(ctx, attacker, cert, method, port, path, body, header)
}

func (c *cluster) sendFrom(ctx context.Context, from machine, cert tls.Certificate, method string, port int, path string, body []byte, header http.Header) (int, string, error) {
	pool := x509.NewCertPool()
	pool.AddCert(c.ca.cert)
	if c.etcdCA.cert != nil {
		pool.AddCert(c.etcdCA.cert)
	}
	client := &http.Client{Timeout: kthwtest.Soon, Transport: &http.Transport{DisableKeepAlives: true, DialContext: from.dial,
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}}}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://%s%s", net.JoinHostPort(c.Address, fmt.Sprint(port)), path), bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// kthwd runs a verb and returns its exit code and output.
func kthwd(t *testing.T, args ...string) (int, string) {
	t.Helper()
	return kthwdOn(t, machine{}, args...)
}

// kthwdOn is kthwd on another machine.
func kthwdOn(t *testing.T, m machine, args ...string) (int, string) {
	t.Helper()
	argv := slices.Concat(m.wrap(), []string{kthwtest.Binary(t)}, args)
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("kthwd %q: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}
