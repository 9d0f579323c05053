// Package access is what stands between kube-apiserver and its clients, beside upstream's own
// authentication and authorization: one verdict on a client certificate per connection, certificates
// that are refused, listeners for tokens, rights that are read before anybody is refused, and bounds
// on what a client without credentials can do.
package access

import (
	"crypto/x509"
	"net/http"
	"slices"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	apiapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/utils/lru"
)

// knownClients is the number of certificates that are remembered: enough for the open
// connections of a few hundred nodes.
const knownClients = 1024

// clientCerts wraps the API server's authenticator, which verifies the certificate of a
// connection again for each request (apiserver/pkg/authentication/request/x509/x509.go):
// two signatures, a twentieth of the work of a busy API server. The verdict depends on
// the certificate, the CAs and the clock. clientCerts queries upstream's authenticator once
// and keeps a good verdict until one of these changes. It tells seen of each good one.
type clientCerts struct {
	next     authenticator.Request // the API server's own, for everything else
	verify   authenticator.Request // upstream's, for certificates only
	cas      x509request.VerifyOptionFunc
	speakers func() []string // headers in which a front proxy names the user it speaks for
	known    *lru.Cache      // *x509.Certificate to verdict
	seen     func(*x509.Certificate)
	used     func(cert *x509.Certificate, user, address string) // called for each request with a certificate; nil for nobody
	told     *lru.Cache                                         // *x509.Certificate that seen was told of, or that no CA of the cluster has signed
}

// verdict is valid under the CAs in roots. A change of their file makes another pool.
type verdict struct {
	response *authenticator.Response
	roots    *x509.CertPool
	until    time.Time
}

// RememberClients inserts clientCerts before the API server's authenticator.
func RememberClients(config *apiapp.Config, seen func(*x509.Certificate), used func(cert *x509.Certificate, user, address string)) {
	info := config.KubeAPIs.ControlPlane.Extra.ClusterAuthenticationInfo
	if info.ClientCA == nil {
		return
	}
	speakers := func() []string { return nil }
	if info.RequestHeaderUsernameHeaders != nil {
		speakers = info.RequestHeaderUsernameHeaders.Value
	}
	// Only the aggregator's chain sees requests; the other two servers are behind it.
	auth := &config.Aggregator.GenericConfig.Authentication
	remembering := newClientCerts(auth.Authenticator, info.ClientCA.VerifyOptions, speakers)
	remembering.seen, remembering.used = seen, used
	auth.Authenticator = remembering
}

func newClientCerts(next authenticator.Request, cas x509request.VerifyOptionFunc, speakers func() []string) *clientCerts {
	return &clientCerts{
		next: next, cas: cas, speakers: speakers, known: lru.New(knownClients), told: lru.New(knownClients),
		// The same as in kubeapiserver/authenticator/config.go:New.
		verify: group.NewAuthenticatedGroupAdder(x509request.NewDynamic(cas, x509request.CommonNameUserConversion)),
	}
}

// AuthenticateRequest implements authenticator.Request.
func (c *clientCerts) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	cert, cas := c.certificate(req)
	if cert == nil {
		response, ok, err := c.next.AuthenticateRequest(req)
		if err == nil && ok {
			c.tell(req)
			c.use(certificateOf(req), response, req)
		}
		return response, ok, err
	}
	now := time.Now()
	if kept, ok := c.known.Get(cert); ok {
		if v := kept.(verdict); v.roots == cas.Roots && now.Before(v.until) {
			c.use(cert, v.response, req)
			return v.response, true, nil
		}
		c.known.Remove(cert)
	}
	response, ok, err := c.verify.AuthenticateRequest(req)
	if err != nil || !ok {
		return c.next.AuthenticateRequest(req) // it may accept a token, and it explains a refusal
	}
	if until, ok := validUntil(cert, cas); ok {
		c.known.Add(cert, verdict{response, cas.Roots, until})
	}
	if c.seen != nil {
		c.seen(cert)
	}
	c.use(cert, response, req)
	return response, true, nil
}

// use tells used of a request that was accepted, if it has come with a certificate. Its user may
// have shown something else beside it.
func (c *clientCerts) use(cert *x509.Certificate, response *authenticator.Response, req *http.Request) {
	if c.used == nil || cert == nil || response == nil || response.User == nil {
		return
	}
	c.used(cert, response.User.GetName(), req.RemoteAddr)
}

// tell tells seen of a certificate about which upstream has decided: one with others behind it, or
// beside headers of a front proxy, which a client can add to hide it.
func (c *clientCerts) tell(req *http.Request) {
	cert := certificateOf(req)
	if cert == nil || c.seen == nil {
		return
	}
	if _, ok := c.told.Get(cert); ok {
		return
	}
	c.told.Add(cert, nil)
	if signedBy(c.cas, req.TLS.PeerCertificates) {
		c.seen(cert)
	}
}

// certificate returns the client's certificate, or nil if it does not decide the user: a
// front proxy may speak for another one. Clients with intermediate certificates are left
// to upstream, because the verdict would depend on those as well.
func (c *clientCerts) certificate(req *http.Request) (*x509.Certificate, x509.VerifyOptions) {
	none := x509.VerifyOptions{}
	if req.TLS == nil || len(req.TLS.PeerCertificates) != 1 {
		return nil, none
	}
	if slices.ContainsFunc(c.speakers(), func(header string) bool { return req.Header.Get(header) != "" }) {
		return nil, none
	}
	cas, ok := c.cas()
	if !ok || cas.Roots == nil {
		return nil, none
	}
	return req.TLS.PeerCertificates[0], cas
}

// validUntil returns the end of the longest-lived chain: the earliest end in it.
func validUntil(cert *x509.Certificate, cas x509.VerifyOptions) (until time.Time, ok bool) {
	chains, err := cert.Verify(cas)
	if err != nil {
		return until, false
	}
	for _, chain := range chains {
		end := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) }).NotAfter
		if end.After(until) {
			until = end
		}
	}
	return until, true
}
