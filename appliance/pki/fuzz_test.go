package pki

import (
	"bytes"
	"crypto/x509"
	"strings"
	"testing"
)

// FuzzPEM: the parsers accept any input, and what they have read can be written and
// read again.
func FuzzPEM(f *testing.F) {
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	ca, err := issue(certificates[0], nil, key, pair{}, noon)
	if err != nil {
		f.Fatal(err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		f.Fatal(err)
	}
	certPEM := encodeCertificates(append(certificatesOf(ca), ca))
	for _, seed := range [][]byte{nil, keyPEM, certPEM, append(keyPEM, certPEM...), certPEM[:len(certPEM)/2],
		bytes.ReplaceAll(keyPEM, []byte("EC PRIVATE"), []byte("PRIVATE")), bytes.ReplaceAll(certPEM, []byte("CERTIFICATE"), []byte("PUBLIC KEY")),
		[]byte("-----BEGIN EC PRIVATE KEY-----\nDEK-Info: x\n\nAAAA\n-----END EC PRIVATE KEY-----\n")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		chain, public, err := parseCertificates(data)
		if err == nil && len(public) == 0 || len(public) < len(chain) {
			t.Errorf("%d certificates, %d public keys, %v", len(chain), len(public), err)
		}
		for _, c := range chain {
			describe("", c)
		}
		if again, _, err := parseCertificates(encodeCertificates(chain)); len(chain) > 0 && (err != nil || len(again) != len(chain)) {
			t.Errorf("read again: %d certificates of %d, %v", len(again), len(chain), err)
		}
		key, err := parseKey(data)
		if err != nil {
			return
		}
		out, err := encodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseKey(out); err != nil || !fits(again, key.Public()) {
			t.Errorf("key read again: %v", err)
		}
	})
}

// FuzzKubeconfig: no panic, no partial result, and no content in errors.
func FuzzKubeconfig(f *testing.F) {
	key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	ca, err := issue(certificates[0], nil, key, pair{}, noon)
	if err != nil {
		f.Fatal(err)
	}
	p := pair{chain: certificatesOf(ca), key: key}
	whole, err := renderKubeconfig(Spec{}, "https://127.0.0.1:6443", p, p)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", string(whole), string(whole[:len(whole)/2]), filesConfig, "kind: Config", "{}", "[]", "- &a [*a]",
		strings.ReplaceAll(string(whole), "user: admin", "user: ~"), "kind: Config\nusers: s3cretsecret",
		"kind: s3cretsecret", "kind: Config\ncurrent-context: s3cretsecret"} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data string) {
		a, err := parseKubeconfig([]byte(data), dir)
		if err == nil && (len(a.cas) == 0 || len(a.client.chain) == 0 || a.client.key == nil) {
			t.Errorf("half a kubeconfig: %+v", a)
		}
		if err != nil && strings.Contains(err.Error(), "s3cretsecret") {
			t.Errorf("error quotes the content: %v", err)
		}
		checkDocument([]byte(data))
	})
}

func certificatesOf(c *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{c} }
