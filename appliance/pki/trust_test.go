package pki

import (
	"crypto/x509"
	"os"
	"strings"
	"testing"
)

// caOf returns another CA's certificate, with its lifetime in days from and to now.
func caOf(t *testing.T, key pair, cn string, from, to int) string {
	t.Helper()
	p := key
	if p.key == nil {
		k, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		p.key = k
	}
	return string(encodeCertificates(sign(t, &x509.Certificate{
		Subject: row{cn: cn}.subject(), NotBefore: noon.AddDate(0, 0, from), NotAfter: noon.AddDate(0, 0, to),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, p.key, pair{}).chain))
}

// Trust is a bundle. The certificate that belongs to ca-key.pem signs, wherever it stands.
func TestBundle(t *testing.T) {
	type bundle struct {
		name, data string
		warns      string // "" means no warning
	}
	l := fresh(t)
	own, key := get(t, l.CA()), loadPair(t, l, NameCA)
	other, expired := caOf(t, pair{}, "other", -1, 400), caOf(t, pair{}, "old", -400, -1)
	for _, b := range []bundle{
		{"another CA behind", own + other, ""},
		{"another CA in front", other + own, ""},
		{"twice", own + own, "twice"},
		{"an expired CA", expired + own, `holds the CA "CN=old", which was valid from`},
		{"a leaf", get(t, l.Cert(NameHealth)) + own, "is not the certificate of a CA"},
		{"text", "Subject: CN=other\n" + other + "\n# ours\n" + own, ""},
		{"ends of lines as on Windows", strings.ReplaceAll(other+own, "\n", "\r\n"), ""},
		{"an older certificate of the same key", caOf(t, pair{key: key.key}, "Kubernetes", -9, 90) + own, ""},
	} {
		t.Run(b.name, func(t *testing.T) {
			put(t, l.CA(), b.data)
			for _, missing := range []string{NameHealth, ""} { // with and without a certificate to issue
				if missing != "" {
					defer put(t, l.Cert(missing), get(t, l.Cert(missing)))
					defer put(t, l.Key(missing), get(t, l.Key(missing)))
					remove(t, l.Cert(missing), l.Key(missing))
				}
				report := ensure(t, l, testSpec())
				if b.warns != "" {
					wantWarning(t, report, "ca.pem: ", b.warns)
				} else if len(report.Warnings) > 0 {
					t.Errorf("warnings: got %q, want none", report.Warnings)
				}
			}
			path, data, err := Signer(l)
			if err != nil || path != "" || string(data) != own {
				t.Errorf("signer: got %q, %q, %v; want the certificate of the key alone", path, data, err)
			}
			plan, err := NewPlan(l, testSpec())
			if err != nil || string(plan.Signer()) != own {
				t.Errorf("plan: got %v; want the same signer", err)
			}
		})
	}
	for _, b := range []bundle{
		{"none of them belongs to the key", other + expired, "ca-key.pem: not the key of "},
		{"a byte order mark", "\xef\xbb\xbf" + own + other, "ca.pem: begins with a byte order mark"},
		{"a broken block", own + strings.Replace(other, "MII", "M\x00I", 1), "ca.pem: only 1 of the 2 PEM blocks in it can be read"},
		{"a certificate with headers", own + strings.Replace(other, "CERTIFICATE-----\n", "CERTIFICATE-----\nA: b\n\n", 1), "headers"},
		{"a block that etcd cannot read", own + publicKey(t, key), `holds a block "PUBLIC KEY"`},
	} {
		t.Run(b.name, func(t *testing.T) {
			put(t, l.CA(), b.data)
			if _, err := Check(l, testSpec()); err == nil || !strings.Contains(err.Error(), b.warns) {
				t.Errorf("got %v, want %q", err, b.warns)
			}
		})
	}
}

// A private key is a secret in whatever file it stands.
func TestPrivateKeyInACertificateFile(t *testing.T) {
	for _, r := range certificates {
		t.Run(r.name, func(t *testing.T) {
			l := fresh(t)
			put(t, l.Cert(r.name), get(t, l.Cert(r.name))+get(t, l.Key(r.name)))
			if err := os.Chmod(l.Cert(r.name), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := Check(l, testSpec())
			wantMisfit(t, l, err, []string{r.name + ".pem"}, "readable or writable by group or others (mode 0644)")
			if err := os.Chmod(l.Cert(r.name), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Check(l, testSpec()); (err != nil) != r.isCA() { // etcd cannot read such a CA
				t.Errorf("closed to others: got %v", err)
			}
		})
	}
}
