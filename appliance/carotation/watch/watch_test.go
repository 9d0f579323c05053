package watch

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/pki"
)

func newCA(t *testing.T) *x509.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Kubernetes"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// The old CA's users are named, each once, and nobody else; without a rotation nothing is kept.
func TestWatch(t *testing.T) {
	before, next := newCA(t), newCA(t)
	of := func(issuer *x509.Certificate) *x509.Certificate {
		return &x509.Certificate{AuthorityKeyId: issuer.SubjectKeyId}
	}
	w := &Watch{}
	w.Used(of(before), "early", "10.0.0.1:1")
	if w.Use(pki.CAID(before)) != nil {
		t.Error("without a rotation: something is watched")
	}
	w.Of(before)
	w.Used(of(next), "new", "10.0.0.2:1")
	w.Used(of(before), "jane", "10.0.0.3:1")
	w.Used(of(before), "joe", "10.0.0.4:1")
	w.Used(of(before), "jane", "[fd00::3]:1")
	w.Of(before) // changes nothing
	use := w.Use(pki.CAID(before))
	if use == nil || use.Count != 3 || len(use.Clients) != 2 || !slices.ContainsFunc(use.Clients, func(c Client) bool { return c.User == "jane" && c.Address == "fd00::3" }) {
		t.Errorf("got %+v", use)
	}
	if w.Use(pki.CAID(next)) != nil {
		t.Error("the new CA is watched")
	}
	for i := range 2 * clientsMax {
		w.Used(of(before), strings.Repeat("x", i+1), "10.0.0.5:1")
	}
	if got := len(w.Use(pki.CAID(before)).Clients); got != clientsMax {
		t.Errorf("%d users are kept, want %d", got, clientsMax)
	}
}
