package health

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A ca is a certificate authority made for one test.
type ca struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newCA(t *testing.T) *ca {
	t.Helper()
	tmpl := template("test CA", time.Hour)
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{t: t, cert: cert, key: key, pem: pemBlock("CERTIFICATE", der)}
}

// issue signs a certificate for 127.0.0.1 (or none, for a client) that is valid for
// ttl; a negative ttl makes an expired one.
func (c *ca) issue(name string, ttl time.Duration, ips ...net.IP) (cert, key []byte) {
	c.t.Helper()
	tmpl := template(name, ttl)
	tmpl.IPAddresses = ips
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	k := newKey(c.t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, k.Public(), c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		c.t.Fatal(err)
	}
	return pemBlock("CERTIFICATE", der), pemBlock("PRIVATE KEY", kder)
}

// server is the TLS configuration of an apiserver that insists on a client of the
// same CA, for 127.0.0.1.
func (c *ca) server(ttl time.Duration) *tls.Config {
	return c.serverFor(ttl, net.IPv4(127, 0, 0, 1))
}

func (c *ca) serverFor(ttl time.Duration, ip net.IP) *tls.Config {
	c.t.Helper()
	pair, err := tls.X509KeyPair(c.issue("kube-apiserver", ttl, ip))
	if err != nil {
		c.t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(c.cert)
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    clients,
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}
}

// files are a CA bundle and a client certificate on disk.
type files struct{ dir, ca, cert, key string }

// files writes the CA and a fresh client certificate of that name.
func (c *ca) files(client string) files {
	f := inDir(c.t.TempDir())
	f.write(c, c, client)
	return f
}

func inDir(dir string) files {
	return files{dir, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "health.pem"), filepath.Join(dir, "health-key.pem")}
}

// write replaces the files: trust in one CA, a client certificate of another.
func (f files) write(trust, issuer *ca, client string) {
	issuer.t.Helper()
	cert, key := issuer.issue(client, time.Hour)
	for path, data := range map[string][]byte{f.ca: trust.pem, f.cert: cert, f.key: key} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			issuer.t.Fatal(err)
		}
	}
}

func template(name string, ttl time.Duration) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-2 * time.Hour),
		NotAfter:     time.Now().Add(ttl),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
