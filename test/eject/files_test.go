package eject

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"kthwd/appliance/explain"
	"kthwd/appliance/pki"
)

// Where Debian has nginx and its module.
const (
	nginxPath    = "/usr/sbin/nginx"
	streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"
)

// lacks skips the test where the machine lacks something, and fails it where nothing may lack.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("KTHWD_NO_SKIP") != "" {
		t.Fatalf("lacks %s", what)
	}
	t.Skipf("lacks %s", what)
}

// verifyUnits lets systemd read the units.
func verifyUnits(t *testing.T, out string) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("KTHWD_NO_SKIP") != "" {
			t.Fatal(err)
		}
		return
	}
	args := []string{"verify", "--man=no", "--recursive-errors=no"}
	for _, name := range explain.Names() {
		args = append(args, filepath.Join(out, "systemd", name+".service"))
	}
	if text, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || len(text) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, text)
	}
}

// nginx makes a directory with a configuration around a part, which it lets nginx read.
func nginx(t *testing.T, part string) (dir string) {
	t.Helper()
	if _, err := os.Stat(streamModule); err != nil {
		lacks(t, "nginx with its stream module")
	}
	dir = t.TempDir()
	text := fmt.Sprintf("load_module %s;\npid %s/nginx.pid;\nevents {}\n%s", streamModule, dir, part)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(nginxPath, "-t", "-p", dir, "-c", "nginx.conf", "-e", "error.log").CombinedOutput(); err != nil {
		t.Fatalf("nginx -t: %v\n%s\n%s", err, out, text)
	}
	return dir
}

// TestStream lets nginx read the files of load balancers.
func TestStream(t *testing.T) {
	for name, flags := range map[string][]string{
		"the guide's": {"--backend=10.0.1.73:6443", "--backend=10.0.1.35:6443"},
		"options":     {"--listen=127.0.0.1:16443", "--backend=10.0.1.73:6443 weight 10", "--backend=10.0.1.35:6443 backup", "--backend=10.0.1.36:6443 weight=0", "--proxy-protocol=v1", "--accept-proxy-from=10.9.0.0/16"},
		"one proxied": {"--listen=127.0.0.1:16443", "--listen=127.0.0.1:16444 accept-proxy", "--backend=10.0.1.73:6443", "--accept-proxy-from=10.9.0.0/16"},
		"by source":   {"--listen=127.0.0.1:16443", "--backend=10.0.1.73:6443", "--backend=10.0.1.35:6443", "--balance=source", "--source=127.0.0.1"},
		"first":       {"--listen=[::1]:16443", "--backend=10.0.1.73:6443", "--backend=10.0.1.35:6443", "--balance=first"},
		"IPv6":        {"--listen=127.0.0.1:16443", "--backend=[fd00::1]:6443", "--balance=round-robin"},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			kthwd(t, append([]string{"eject", "--role=lb", "--out=" + out}, flags...)...)
			nginx(t, "include "+filepath.Join(out, "nginx", "kubernetes.conf")+";\n")
		})
	}
}

// strangersPair is a certificate that etcd's CA has signed for somebody else.
func strangersPair(t *testing.T, l pki.Layout) tls.Certificate {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(l.EtcdCA(), l.EtcdCAKey())
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "system:node:n1"}, DNSNames: []string{"n1"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
