package apiserver

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"kthwd/appliance/pki"
)

// An API server that needs longer than the rest of its probe's certificate is found ready with the
// renewed one.
func TestProbeOutlivesItsCertificate(t *testing.T) {
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := pki.Ensure(l, pki.Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		pair, err := tls.LoadX509KeyPair(l.Cert(pki.NameHealth), l.Key(pki.NameHealth))
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	old, refused := serial(), make(chan struct{}, 100)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.PeerCertificates[0].SerialNumber.String() == old { // as if it had expired
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			select {
			case refused <- struct{}{}:
			default:
			}
		}
	}))
	serving, err := tls.LoadX509KeyPair(l.Cert(pki.NameKubernetes), l.Key(pki.NameKubernetes))
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pki.Pool(l.CA())
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{serving}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	server.StartTLS()
	defer server.Close()
	ready := make(chan struct{})
	a := &Server{server: server.URL, layout: l, log: slog.New(slog.DiscardHandler)}
	go a.probe(t.Context(), func() { close(ready) })
	<-refused
	select {
	case <-ready:
		t.Fatal("ready with a certificate that is refused")
	default:
	}
	if _, err := pki.Renew(l, pki.RenewOptions{Names: []string{pki.NameHealth}}); err != nil {
		t.Fatal(err)
	}
	<-ready // the end of the test's time, if never
}
