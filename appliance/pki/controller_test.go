package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNamesOf(t *testing.T) {
	leaf := func(cn string, names ...string) *x509.Certificate {
		c := &x509.Certificate{Subject: pkix.Name{CommonName: cn}}
		for _, n := range names {
			if ip := net.ParseIP(n); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, n)
			}
		}
		return c
	}
	for _, test := range []struct {
		name  string
		leaf  *x509.Certificate
		want  string // of String; "" is an error
		other *x509.Certificate
		match bool
	}{
		{"the guide's", leaf("kubernetes", "10.0.0.1", "kubernetes.default"), "the common name kubernetes", leaf("kubernetes", "10.0.0.2"), true},
		{"a worker beside the guide's", leaf("kubernetes"), "the common name kubernetes", leaf("system:node:w1", "kubernetes.default.svc"), false},
		{"kubeadm's, named like its machine", leaf("kube-apiserver", "c0", "kubernetes.default.svc"), "the name kubernetes.default.svc", leaf("kube-apiserver", "c1", "kubernetes.default.svc"), true},
		{"a worker beside kubeadm's", leaf("c0", "kubernetes.default.svc"), "the name kubernetes.default.svc", leaf("system:node:w1", "w1"), false},
		{"a machine called kubernetes", leaf("c0", "kubernetes"), "the common name c0", leaf("c0"), true},
		{"the bare name is no controller's", leaf("c0", "kubernetes.default"), "the name kubernetes.default", leaf("w1", "kubernetes"), false},
		{"a worker's", leaf("system:node:w1", "w1"), "", nil, false},
		{"nothing", leaf(""), "", nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			names, err := NamesOf(test.leaf)
			if test.want == "" {
				if err == nil {
					t.Fatalf("NamesOf = %v, want an error", names)
				}
				return
			}
			if err != nil || names.String() != test.want {
				t.Fatalf("NamesOf = %q, %v; want %q", names, err, test.want)
			}
			if !names.Match(test.leaf) {
				t.Error("does not match its own certificate")
			}
			if got := names.Match(test.other); got != test.match {
				t.Errorf("Match = %v, want %v", got, test.match)
			}
			request := &x509.CertificateRequest{Subject: test.other.Subject, DNSNames: test.other.DNSNames, IPAddresses: test.other.IPAddresses}
			if got := names.ClaimedBy(request); got != test.match {
				t.Errorf("ClaimedBy = %v, want %v", got, test.match)
			}
		})
	}
	var none ControllerNames
	if !none.Match(leaf("w1")) || none.ClaimedBy(&x509.CertificateRequest{}) {
		t.Error("no names: want every certificate to match and no request to claim one")
	}
}

// Each certificate that kthwd makes: kubernetes.pem alone is a controller's.
func TestOnlyControllersHaveTheirNames(t *testing.T) {
	l, s := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}, testSpec()
	s.Now = nil
	ensure(t, l, s)
	if _, err := IssueNode(l, l.Dir, "w1", []string{"10.0.1.1"}, "https://10.0.0.20:6443"); err != nil {
		t.Fatal(err)
	}
	names, err := Controllers(l.Cert(NameKubernetes))
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	entries, err := os.ReadDir(l.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		for _, u := range Used(filepath.Join(l.Dir, e.Name())) {
			if u.Problem != "" {
				continue // a file without a certificate
			}
			looked++
			cn := ""
			for part := range strings.SplitSeq(u.Subject, ",") {
				if v, ok := strings.CutPrefix(part, "CN="); ok {
					cn = v
				}
			}
			leaf := &x509.Certificate{Subject: pkix.Name{CommonName: cn}}
			if got, want := names.Match(leaf), e.Name() == NameKubernetes+".pem" || e.Name() == NameEtcd+".pem"; got != want {
				t.Errorf("%s (%s): is a controller's: %v, want %v", e.Name(), u.Subject, got, want)
			}
		}
	}
	if looked < 8 {
		t.Errorf("looked at %d certificates, want all that kthwd makes", looked)
	}
}

func TestSharedSecret(t *testing.T) {
	l, s := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}, testSpec()
	ensure(t, l, s)
	first, err := SharedSecret(l, "join")
	if err != nil || len(first) != 32 {
		t.Fatalf("SharedSecret = %d bytes, %v", len(first), err)
	}
	if again, _ := SharedSecret(l, "join"); !bytes.Equal(first, again) {
		t.Error("another secret at the second call")
	}
	if other, _ := SharedSecret(l, "something else"); bytes.Equal(first, other) {
		t.Error("one secret for two purposes")
	}
	// The same key in another form, as openssl writes it.
	key, err := parseKey([]byte(get(t, l.Key(NameServiceAccount))))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	copied := Layout{Dir: t.TempDir()}
	put(t, copied.Key(NameServiceAccount), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	if same, err := SharedSecret(copied, "join"); err != nil || !bytes.Equal(first, same) {
		t.Errorf("the same key as PKCS#8: another secret, or %v", err)
	}
	if _, err := SharedSecret(Layout{Dir: t.TempDir()}, "join"); err == nil {
		t.Error("no key: no error")
	}
}

func TestSharesCA(t *testing.T) {
	a, b, s := Layout{Dir: filepath.Join(t.TempDir(), "a")}, Layout{Dir: filepath.Join(t.TempDir(), "b")}, testSpec()
	ensure(t, a, s)
	ensure(t, b, s)
	both := Layout{Dir: t.TempDir()}
	put(t, both.CA(), get(t, a.CA())+get(t, b.CA()))
	for _, test := range []struct {
		one, two string
		want     bool
	}{
		{a.CA(), a.CA(), true}, {a.CA(), b.CA(), false}, {both.CA(), b.CA(), true}, {a.CA(), filepath.Join(b.Dir, "none.pem"), false},
	} {
		if got, err := SharesCA(test.one, test.two); err != nil || got != test.want {
			t.Errorf("SharesCA(%s, %s) = %v, %v; want %v", filepath.Base(test.one), filepath.Base(test.two), got, err, test.want)
		}
	}
	put(t, filepath.Join(both.Dir, "broken.pem"), "no PEM")
	if _, err := SharesCA(a.CA(), filepath.Join(both.Dir, "broken.pem")); err == nil {
		t.Error("a file without a certificate: no error")
	}
}
