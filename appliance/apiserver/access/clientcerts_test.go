package access

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// authority signs certificates for clients.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T, lasts time.Duration) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	a.cert, a.key = sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(lasts),
	}, nil)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) client(t *testing.T, name string, lasts time.Duration) *x509.Certificate {
	t.Helper()
	cert, _ := sign(t, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name, Organization: []string{"staff"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, NotAfter: time.Now().Add(lasts),
	}, a)
	return cert
}

func sign(t *testing.T, template *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	template.SerialNumber, template.NotBefore = big.NewInt(1), time.Now().Add(-time.Hour)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, parentKey := template, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// asked counts how often an authenticator is asked. A nil one knows nobody.
type asked struct {
	authenticator.Request
	times int
}

func (a *asked) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	a.times++
	if a.Request == nil {
		return nil, false, nil
	}
	return a.Request.AuthenticateRequest(req)
}

// apiClients is a clientCerts under test, and what it asks.
type apiClients struct {
	*clientCerts
	verified, others *asked
	roots            *x509.CertPool
}

func newAPIClients(roots *x509.CertPool) *apiClients {
	c := &apiClients{others: &asked{}, roots: roots}
	cas := func() (x509.VerifyOptions, bool) {
		return x509.VerifyOptions{Roots: c.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, c.roots != nil
	}
	c.clientCerts = newClientCerts(c.others, cas, func() []string { return []string{"X-Remote-User"} })
	c.verified = &asked{Request: c.verify}
	c.verify = c.verified
	return c
}

// who is the user that a request is taken for, "" for nobody.
func (c *apiClients) who(t *testing.T, header string, shown ...*x509.Certificate) user.Info {
	t.Helper()
	req := &http.Request{Header: http.Header{}, TLS: &tls.ConnectionState{PeerCertificates: shown}}
	if header != "" {
		req.Header.Set(header, "somebody")
	}
	response, ok, err := c.AuthenticateRequest(req)
	if err != nil || !ok {
		return &user.DefaultInfo{}
	}
	return response.User
}

func TestACertificateIsVerifiedOnce(t *testing.T) {
	ca := newAuthority(t, time.Hour)
	c := newAPIClients(ca.pool)
	alice, bob := ca.client(t, "alice", time.Hour), ca.client(t, "bob", time.Hour)
	for range 3 {
		for want, cert := range map[string]*x509.Certificate{"alice": alice, "bob": bob} {
			got := c.who(t, "", cert)
			if got.GetName() != want || !slices.Equal(got.GetGroups(), []string{"staff", user.AllAuthenticated}) {
				t.Errorf("got %q in %q, want %q in staff and %s", got.GetName(), got.GetGroups(), want, user.AllAuthenticated)
			}
		}
	}
	if c.verified.times != 2 || c.others.times != 0 {
		t.Errorf("verified %d times, passed on %d times; want 2 and 0", c.verified.times, c.others.times)
	}
}

func TestAVerdictEnds(t *testing.T) {
	for name, lasts := range map[string]struct{ ca, client time.Duration }{
		"with the certificate": {time.Hour, time.Minute},
		"with the CA":          {time.Minute, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newAuthority(t, lasts.ca)
				c, cert := newAPIClients(ca.pool), ca.client(t, "alice", lasts.client)
				time.Sleep(59 * time.Second)
				if got := c.who(t, "", cert).GetName(); got != "alice" {
					t.Fatalf("before the end: got %q, want alice", got)
				}
				time.Sleep(2 * time.Second)
				if got := c.who(t, "", cert).GetName(); got != "" {
					t.Errorf("after the end: got %q, want nobody", got)
				}
			})
		})
	}
	t.Run("with another CA file", func(t *testing.T) {
		ca := newAuthority(t, time.Hour)
		c, cert := newAPIClients(ca.pool), ca.client(t, "alice", time.Hour)
		if got := c.who(t, "", cert).GetName(); got != "alice" {
			t.Fatalf("under its CA: got %q, want alice", got)
		}
		for _, roots := range []*x509.CertPool{newAuthority(t, time.Hour).pool, nil} {
			c.roots = roots
			if got := c.who(t, "", cert).GetName(); got != "" {
				t.Errorf("under another CA: got %q, want nobody", got)
			}
		}
		c.roots = ca.pool
		if got := c.who(t, "", cert).GetName(); got != "alice" {
			t.Errorf("under its CA again: got %q, want alice", got)
		}
	})
}

// A certificate is noted however it is shown: with others behind it, or beside a header of a front
// proxy. One that upstream does not accept is not.
func TestSeen(t *testing.T) {
	ca, other := newAuthority(t, time.Hour), newAuthority(t, time.Hour)
	alice, foreign := ca.client(t, "alice", time.Hour), other.client(t, "bob", time.Hour)
	anybody := authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
		return &authenticator.Response{User: &user.DefaultInfo{Name: "anybody"}}, true, nil
	})
	for _, tt := range []struct {
		name, header string
		shown        []*x509.Certificate
		accepts      authenticator.Request
		want         int
	}{
		{"alone", "", []*x509.Certificate{alice}, nil, 1},
		{"with its CA", "", []*x509.Certificate{alice, ca.cert}, anybody, 1},
		{"as a front proxy", "X-Remote-User", []*x509.Certificate{alice}, anybody, 1},
		{"as a front proxy, refused", "X-Remote-User", []*x509.Certificate{alice}, nil, 0},
		{"of another CA, with a token", "Authorization", []*x509.Certificate{foreign}, anybody, 0},
		{"of another CA, with its CA", "", []*x509.Certificate{foreign, other.cert}, anybody, 0},
		{"none", "", nil, anybody, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, times := newAPIClients(ca.pool), 0
			c.others.Request = tt.accepts
			c.seen = func(*x509.Certificate) { times++ }
			for range 3 {
				c.who(t, tt.header, tt.shown...)
			}
			if times != tt.want {
				t.Errorf("seen %d times, want %d", times, tt.want)
			}
		})
	}
}

// What does not depend on the certificate alone is for the API server's own authenticator, each time.
func TestOthersArePassedOn(t *testing.T) {
	ca, other := newAuthority(t, time.Hour), newAuthority(t, time.Hour)
	alice := ca.client(t, "alice", time.Hour)
	c := newAPIClients(ca.pool)
	c.who(t, "", alice) // known from here on
	for _, tt := range []struct {
		name, header string
		shown        []*x509.Certificate
	}{
		{"no certificate", "", nil},
		{"a front proxy's header", "X-Remote-User", []*x509.Certificate{alice}},
		{"an intermediate certificate", "", []*x509.Certificate{alice, ca.cert}},
		{"a certificate of another CA", "", []*x509.Certificate{other.client(t, "alice", time.Hour)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.others.times = 0
			for range 2 {
				if got := c.who(t, tt.header, tt.shown...).GetName(); got != "" {
					t.Errorf("got %q, want nobody", got)
				}
			}
			if c.others.times != 2 {
				t.Errorf("passed on %d times, want 2", c.others.times)
			}
		})
	}
	if got := c.who(t, "Authorization", alice).GetName(); got != "alice" {
		t.Errorf("a certificate and a token: got %q; upstream takes the certificate", got)
	}
}
