package apiserver

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

// knownClients is how many certificates are remembered: those of the connections
// that are open, on a cluster of a few hundred nodes.
const knownClients = 1024

// clientCerts is the API server's authenticator, which verifies the certificate of
// a connection again for each request on it (apiserver/pkg/authentication/request/
// x509/x509.go): two signatures, a twentieth of what a busy API server does. The
// verdict on a certificate depends on it, on the CAs and on the clock; clientCerts asks
// upstream's authenticator once and keeps a good verdict until one of those is another.
type clientCerts struct {
	next     authenticator.Request // the API server's own, for everything else
	verify   authenticator.Request // upstream's, for certificates only
	cas      x509request.VerifyOptionFunc
	speakers func() []string // headers in which a front proxy says for whom it speaks
	known    *lru.Cache      // *x509.Certificate to verdict
}

// verdict holds under the CAs in roots, which is another pool once their file has changed.
type verdict struct {
	response *authenticator.Response
	roots    *x509.CertPool
	until    time.Time
}

// rememberClients puts clientCerts before the API server's authenticator.
func rememberClients(config *apiapp.Config) {
	info := config.KubeAPIs.ControlPlane.Extra.ClusterAuthenticationInfo
	if info.ClientCA == nil {
		return
	}
	speakers := func() []string { return nil }
	if info.RequestHeaderUsernameHeaders != nil {
		speakers = info.RequestHeaderUsernameHeaders.Value
	}
	// Only the aggregator's chain sees requests; the other two servers stand behind it.
	auth := &config.Aggregator.GenericConfig.Authentication
	auth.Authenticator = newClientCerts(auth.Authenticator, info.ClientCA.VerifyOptions, speakers)
}

func newClientCerts(next authenticator.Request, cas x509request.VerifyOptionFunc, speakers func() []string) *clientCerts {
	return &clientCerts{
		next: next, cas: cas, speakers: speakers, known: lru.New(knownClients),
		// As kubeapiserver/authenticator/config.go:New makes it.
		verify: group.NewAuthenticatedGroupAdder(x509request.NewDynamic(cas, x509request.CommonNameUserConversion)),
	}
}

// AuthenticateRequest implements authenticator.Request.
func (c *clientCerts) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	cert, cas := c.certificate(req)
	if cert == nil {
		return c.next.AuthenticateRequest(req)
	}
	now := time.Now()
	if kept, ok := c.known.Get(cert); ok {
		if v := kept.(verdict); v.roots == cas.Roots && now.Before(v.until) {
			return v.response, true, nil
		}
		c.known.Remove(cert)
	}
	response, ok, err := c.verify.AuthenticateRequest(req)
	if err != nil || !ok {
		return c.next.AuthenticateRequest(req) // it may be known by a token, and says what is wrong
	}
	if until, ok := validUntil(cert, cas); ok {
		c.known.Add(cert, verdict{response, cas.Roots, until})
	}
	return response, true, nil
}

// certificate is what the client shows, or nil when that does not settle who it is: a
// front proxy may speak for somebody else. A client with intermediate certificates
// is left to upstream, because the verdict would depend on them, too.
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

// validUntil is when the first certificate of the chain that lasts longest ends.
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
