package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// noon is the time of the tests.
var noon = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func testSpec() Spec {
	return Spec{
		Addresses: []string{"10.0.0.11", "10.0.0.12", "10.0.0.20", "lb.example.org"},
		Local:     []string{"10.0.0.11", "127.0.0.1"},
		ServiceIP: net.ParseIP("10.32.0.1"),
		Server:    "https://127.0.0.1:6443",
		Now:       at(noon),
	}
}

// filled returns a data directory that Ensure has filled.
func filled(t *testing.T) Layout {
	t.Helper()
	l := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}
	ensure(t, l, testSpec())
	return l
}

// fresh returns a copy of such a directory, because syncing every file for each of a
// hundred tests takes too long.
func fresh(t *testing.T) Layout {
	t.Helper()
	once.Do(func() {
		l := filled(t)
		for name := range contents(t, l.Dir) {
			if name != "." {
				original[name] = get(t, filepath.Join(l.Dir, name))
			}
		}
	})
	l := Layout{Dir: filepath.Join(t.TempDir(), "kubernetes")}
	for name, data := range original {
		put(t, filepath.Join(l.Dir, name), data)
	}
	return l
}

var (
	once     sync.Once
	original = map[string]string{}
)

func ensure(t *testing.T, l Layout, s Spec) Report {
	t.Helper()
	report, err := Ensure(l, s)
	if err != nil {
		t.Fatalf("Ensure: %v", err)
	}
	return report
}

// contents returns the mode and bytes of every file in a directory, by name.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		found[name] = info.Mode().String()
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			found[name] += "\n" + string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// wantSame fails for each file that was added, removed or changed.
func wantSame(t *testing.T, dir string, before map[string]string) {
	t.Helper()
	after := contents(t, dir)
	for name, was := range before {
		if is, there := after[name]; !there {
			t.Errorf("%s is gone", name)
		} else if is != was {
			t.Errorf("%s has changed", name)
		}
	}
	for name := range after {
		if _, there := before[name]; !there {
			t.Errorf("%s is new", name)
		}
	}
}

func put(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	mode := os.FileMode(0o644)
	if strings.HasSuffix(path, "-key.pem") || strings.HasSuffix(path, ".kubeconfig") || strings.HasPrefix(filepath.Base(path), "encryption") {
		mode = 0o600
	}
	os.Remove(path)
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	chain, _, err := parseCertificates([]byte(get(t, path)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return chain[0]
}

func loadPair(t *testing.T, l Layout, name string) pair {
	t.Helper()
	key, err := parseKey([]byte(get(t, l.Key(name))))
	if err != nil {
		t.Fatal(err)
	}
	c := certificate(t, l.Cert(name))
	return pair{chain: []*x509.Certificate{c}, public: []crypto.PublicKey{c.PublicKey}, key: key}
}

// sign makes a certificate for key. Without a chain in ca it is self-signed.
func sign(t *testing.T, template *x509.Certificate, key crypto.Signer, ca pair) pair {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = noon.Add(-time.Hour), noon.AddDate(1, 0, 0)
	}
	parent, signer := template, key
	if ca.chain != nil {
		parent, signer = ca.chain[0], ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return pair{chain: []*x509.Certificate{c}, public: []crypto.PublicKey{c.PublicKey}, key: key}
}

// rsaKeys are generated once, because that is slow.
var rsaKeys = sync.OnceValue(func() (keys [4]*rsa.PrivateKey) {
	for i := range keys {
		keys[i], _ = rsa.GenerateKey(rand.Reader, 2048)
	}
	return keys
})

// encodings are the forms in which a tutorial's key may come.
var encodings = map[string]func(*testing.T, crypto.Signer) string{
	"PKCS#1": func(t *testing.T, key crypto.Signer) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key.(*rsa.PrivateKey))}))
	},
	"PKCS#8": func(t *testing.T, key crypto.Signer) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	},
}

// tutorial returns the directory that part 3 assembles: cfssl's RSA certificates, all
// of one profile, and kubectl's kubeconfigs.
func tutorial(t *testing.T, encoding string) Layout {
	t.Helper()
	l := Layout{Dir: t.TempDir()}
	encode, keys := encodings[encoding], rsaKeys()
	name := func(cn, o string) pkix.Name {
		return pkix.Name{CommonName: cn, Organization: []string{o}, Country: []string{"US"}, Locality: []string{"Portland"},
			Province: []string{"Oregon"}, OrganizationalUnit: []string{"Kubernetes The Hard Way"}}
	}
	leaf := func(cn, o string) *x509.Certificate {
		return &x509.Certificate{Subject: name(cn, o), BasicConstraintsValid: true, ExtKeyUsage: serverAndClient,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment}
	}
	ca := sign(t, &x509.Certificate{Subject: name("Kubernetes", "Kubernetes"), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}, keys[0], pair{})
	server := leaf("kubernetes", "Kubernetes")
	server.DNSNames = []string{"kubernetes.default"}
	for _, ip := range []string{"10.32.0.1", "10.0.0.11", "10.0.0.12", "10.0.0.20", "127.0.0.1"} {
		server.IPAddresses = append(server.IPAddresses, net.ParseIP(ip))
	}
	put(t, l.CA(), string(encodeCertificates(ca.chain)))
	put(t, l.CAKey(), encode(t, ca.key))
	put(t, l.Cert(NameKubernetes), string(encodeCertificates(sign(t, server, keys[1], ca).chain)))
	put(t, l.Key(NameKubernetes), encode(t, keys[1]))
	put(t, l.Cert(NameServiceAccount), string(encodeCertificates(sign(t, leaf("service-accounts", "Kubernetes"), keys[2], ca).chain)))
	put(t, l.Key(NameServiceAccount), encode(t, keys[2]))
	for file, subject := range map[string][2]string{
		NameAdmin:             {"admin", AdminsGroup},
		NameSuperAdmin:        {"super-admin", "system:masters"},
		NameControllerManager: {"system:kube-controller-manager", "system:kube-controller-manager"},
		NameScheduler:         {"system:kube-scheduler", "system:kube-scheduler"},
	} {
		p := sign(t, leaf(subject[0], subject[1]), keys[3], ca)
		put(t, l.Kubeconfig(file), kubectlConfig("https://127.0.0.1:6443", encodeCertificates(ca.chain),
			encodeCertificates(p.chain), []byte(encode(t, p.key)), subject[0]))
	}
	put(t, l.EncryptionConfig(), "kind: EncryptionConfig\napiVersion: v1\nresources:\n- resources: [secrets]\n  providers:\n  - aescbc:\n      keys:\n      - name: key1\n        secret: "+
		base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n  - identity: {}\n")
	return l
}

// kubectlConfig returns a kubeconfig as kubectl writes it.
func kubectlConfig(server string, ca, cert, key []byte, user string) string {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: %s
  name: kubernetes-the-hard-way
contexts:
- context:
    cluster: kubernetes-the-hard-way
    user: %s
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: %[3]s
  user:
    client-certificate-data: %s
    client-key-data: %s
`, b64(ca), server, user, b64(cert), b64(key))
}

func bases(paths []string) []string {
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	return names
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}
