package member

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/advice"
)

func TestSkewWarning(t *testing.T) {
	asked := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	answered := asked.Add(8 * time.Second) // a slow answer is no difference
	for there, want := range map[time.Time]string{
		{}:                          "", // an older kthwd does not tell
		asked:                       "",
		answered:                    "",
		asked.Add(-2 * time.Second): "",
		asked.Add(-time.Minute):     "1m0s ahead of the cluster's",
		answered.Add(time.Hour):     "1h0m0s behind the cluster's",
	} {
		if got := SkewWarning(there, asked, answered); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%v: got %q, want %q", there, got, want)
		}
	}
}

func TestOutdated(t *testing.T) {
	from := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	cert := &x509.Certificate{NotBefore: from, NotAfter: from.Add(time.Hour)}
	expired := fmt.Errorf("tls: %w", x509.CertificateInvalidError{Cert: cert, Reason: x509.Expired})
	for now, want := range map[time.Time]string{
		from.Add(-time.Minute):  "it is valid from 2026-01-02 12:00:00 UTC on, and the clock here says 2026-01-02 11:59:00 UTC",
		from.Add(2 * time.Hour): "it expired at 2026-01-02 13:00:00 UTC; the clock here says 2026-01-02 14:00:00 UTC",
	} {
		if text, do, ok := Outdated(expired, "it", now); !ok || text != want || !strings.Contains(do, "timedatectl") {
			t.Errorf("got %q, %q, %v; want %q", text, do, ok, want)
		}
	}
	if _, _, ok := Outdated(errors.New("refused"), "it", from); ok {
		t.Error("another error counts as an outdated certificate")
	}
}

// A joiner that meets an expired certificate says so, with both times, and tries the other
// controllers.
func TestJoinMeetsAnExpiredCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(-time.Minute)}
	var chain [][]byte
	for _, c := range []*x509.Certificate{leaf, ca} {
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, der)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	at := s.Listener.Addr().String()
	client := Client{Token: Token{CA: sha256.Sum256(chain[1]), Addresses: []string{at}}}
	_, err = client.Files(t.Context(), false, false)
	if hint, _ := advice.Of(err); err == nil || !strings.HasPrefix(err.Error(), "the certificate of the controller at "+at+" expired at ") || !strings.Contains(hint, "timedatectl") {
		t.Errorf("got %v, hint %q", err, hint)
	}
	client.Token.Addresses = []string{at, at}
	if _, err = client.Files(t.Context(), false, false); err == nil || strings.Count(err.Error(), "expired at") != 2 {
		t.Errorf("two controllers with such a certificate: got %v", err)
	}
}
