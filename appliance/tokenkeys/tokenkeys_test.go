package tokenkeys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gopkg.in/go-jose/go-jose.v2"
	"gopkg.in/go-jose/go-jose.v2/jwt"

	"kthwd/appliance/status"
)

const issuer = "https://kubernetes.default.svc.cluster.local"

// pair is a key pair with its public key in a file.
type pair struct {
	private *ecdsa.PrivateKey
	id      string
	file    string
}

func newPair(t *testing.T) pair {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "sa.pub")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return pair{private, idOf(der), file}
}

// token signs a token; its header names the key id.
func (p pair) token(t *testing.T, id, iss string, expires time.Time) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: p.private, KeyID: id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{Issuer: iss, Subject: "system:serviceaccount:shop:web", Expiry: jwt.NewNumericDate(expires)}).CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// The record goes through a rotation: a key that is no longer accepted is known as such.
func TestRefused(t *testing.T) {
	old, current, strange := newPair(t), newPair(t), newPair(t)
	now := time.Now()
	before := New(Config{Files: []string{old.file}, Issuers: []string{issuer}})
	first, err := before.read()
	if err != nil {
		t.Fatal(err)
	}
	w := New(Config{Files: []string{current.file}, Issuers: []string{issuer}, Kubeconfig: "/k"})
	here, err := w.read()
	if err != nil {
		t.Fatal(err)
	}
	later := now.Add(time.Hour)
	w.Refused(old.token(t, old.id, issuer, later), "10.0.0.7:1") // before the record
	w.use(merged(merged(nil, first, now), here, now))

	for _, tt := range []struct {
		name, token, reason string
	}{
		{"no token", "junk", ""},
		{"of the key before", old.token(t, old.id, issuer, later), ReplacedKey},
		{"that, but expired", old.token(t, old.id, issuer, now.Add(-time.Hour)), ""},
		{"forged with its key id", strange.token(t, old.id, issuer, later), ""},
		{"of another issuer", current.token(t, current.id, "https://other", later), OtherIssuer},
		{"of another issuer, forged", strange.token(t, current.id, "https://other", later), ""},
		{"good, and refused for another reason", current.token(t, current.id, issuer, later), ""},
		{"of an unknown key", strange.token(t, strange.id, issuer, later), UnknownKey},
		{"of an unknown key and issuer", strange.token(t, strange.id, "https://login.example", later), ""},
	} {
		parsed, err := jwt.ParseSigned(tt.token)
		if err != nil {
			w.Refused(tt.token, "10.0.0.7:1")
			continue
		}
		row, _, ok := w.judge(parsed, now)
		if row.reason != tt.reason || ok != (tt.reason != "") {
			t.Errorf("a token %s: got %q, %v; want %q", tt.name, row.reason, ok, tt.reason)
		}
		w.Refused(tt.token, "10.0.0.7:1")
	}

	found := w.Findings()
	if len(found) != 3 {
		t.Fatalf("got %+v, want three findings", found)
	}
	for i, want := range []struct {
		health status.Health
		text   string
		do     string
	}{
		{status.Degraded, "tokens from before " + now.UTC().Format("2006-01-02 15:04 UTC") + " are refused, for their key " + old.id + " is in no file since then: 1, of system:serviceaccount:shop:web at 10.0.0.7",
			"kubectl --kubeconfig /k get pods -n shop --field-selector spec.serviceAccountName=web"},
		{status.Healthy, "tokens of a key that this cluster never had are refused: 1, the newest from 10.0.0.7", current.file},
		{status.Degraded, "tokens of the issuer https://other are refused, for the API server accepts " + issuer + " only", "--kube-apiserver-arg=service-account-issuer=" + issuer + " --kube-apiserver-arg=service-account-issuer=https://other"},
	} {
		if f := found[i]; f.Health != want.health || !strings.Contains(f.Text, want.text) || !strings.Contains(f.Do, want.do) || f.Since.IsZero() {
			t.Errorf("got %+v, want %+v", f, want)
		}
	}
}

// A key that comes back is accepted again, and one that was replaced long ago is forgotten.
func TestMerged(t *testing.T) {
	now := time.Now()
	here := map[string]key{"a": {}}
	got := merged(map[string]key{"a": {Until: now}, "b": {}, "c": {Until: now.Add(-longest - time.Hour)}}, here, now)
	if len(got) != 2 || !got["a"].Until.IsZero() || got["b"].Until.IsZero() {
		t.Errorf("got %+v, want a accepted, b replaced now, and c gone", got)
	}
}
