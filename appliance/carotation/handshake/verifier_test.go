package handshake

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"kthwd/appliance/pki"
)

// A verifier trusts a CA if it does anything but refuse its certificate: with 401, as Kubernetes' servers do, or
// with an alert of TLS.
func TestAccepts(t *testing.T) {
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := pki.Ensure(l, pki.Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil {
		t.Fatal(err)
	}
	is, err := pki.ReadCA(l, pki.NameFrontProxyCA)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := pki.ReadCA(l, pki.NameCA)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := pki.Probe(l, pki.NameFrontProxyCA, is.Signer, is.Key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(pair.Certificate) != 1 {
		t.Fatalf("got %d certificates", len(pair.Certificate))
	}
	knows, other := x509.NewCertPool(), x509.NewCertPool()
	knows.AddCert(is.Signer)
	other.AddCert(cluster.Signer)
	for name, tt := range map[string]struct {
		auth   tls.ClientAuthType
		cas    *x509.CertPool
		status int
		trusts bool
	}{
		"it has no rights":    {tls.RequestClientCert, nil, http.StatusForbidden, true},
		"it is refused":       {tls.RequestClientCert, nil, http.StatusUnauthorized, false},
		"its CA is known":     {tls.RequireAndVerifyClientCert, knows, http.StatusOK, true},
		"its CA is not known": {tls.RequireAndVerifyClientCert, other, http.StatusOK, false},
	} {
		t.Run(name, func(t *testing.T) {
			var user, path, host string
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				user, path, host = r.Header.Get("X-Remote-User"), r.URL.Path, r.TLS.ServerName
				w.WriteHeader(tt.status)
			}))
			server.TLS = &tls.Config{ClientAuth: tt.auth, ClientCAs: tt.cas, MinVersion: tls.VersionTLS12}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			v := Verifier{Name: "v1.shop", Address: server.Listener.Addr().String(), Host: "shop.default.svc", Path: "/apis/shop/v1", User: "nobody"}
			trusts, err := v.Accepts(t.Context(), pair)
			if err != nil || trusts != tt.trusts {
				t.Errorf("got %v, %v", trusts, err)
			}
			if tt.trusts && (user != v.User || path != v.Path || host != v.Host) {
				t.Errorf("it was asked as %q for %q of %q", user, path, host)
			}
		})
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for _, v := range []Verifier{{Address: gone.Listener.Addr().String()}, {}, {Address: "127.0.0.1:1", Error: "no endpoint"}} {
		if _, err := v.Accepts(t.Context(), pair); err == nil {
			t.Errorf("%+v: no error", v)
		}
	}
}
