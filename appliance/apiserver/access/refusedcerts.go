package access

import (
	"bufio"
	"context"
	"crypto/x509"
	"net"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"
	genericapiserver "k8s.io/apiserver/pkg/server"
	apiapp "k8s.io/kubernetes/cmd/kube-apiserver/app"

	"kthwd/appliance/refused"
)

// refusedCerts refuses the certificates that a list names.
type refusedCerts struct {
	next  authenticator.Request
	lists []*refused.List
	cas   x509request.VerifyOptionFunc
	tried TriedFunc
}

// TriedFunc is called for a request that is refused because of its certificate, which one of the
// cluster's CAs has signed.
type TriedFunc func(cert *x509.Certificate, address string, why error)

// RefuseCertificates inserts refusedCerts before the API server's authenticator, and before the
// verdicts that clientCerts remembers.
func RefuseCertificates(config *apiapp.Config, lists []*refused.List, tried TriedFunc) {
	cas := config.KubeAPIs.ControlPlane.Extra.ClusterAuthenticationInfo.ClientCA
	if len(lists) == 0 || cas == nil {
		return
	}
	auth := &config.Aggregator.GenericConfig.Authentication // all requests pass the aggregator's
	auth.Authenticator = refusedCerts{auth.Authenticator, lists, cas.VerifyOptions, tried}
}

// AuthenticateRequest implements authenticator.Request. The certificate is refused whatever else
// a request has, such as a token: the client has shown what was taken from it. A certificate of
// another CA is no certificate of the one that is named in it.
func (r refusedCerts) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if cert := certificateOf(req); cert != nil {
		for _, l := range r.lists {
			if err := l.Refuses(cert); err != nil && signedBy(r.cas, req.TLS.PeerCertificates) {
				if r.tried != nil {
					r.tried(cert, req.RemoteAddr, err)
				}
				return nil, false, err
			}
		}
	}
	return r.next.AuthenticateRequest(req)
}

// signedBy reports whether one of the CAs has signed the first certificate of a client's chain.
func signedBy(cas x509request.VerifyOptionFunc, chain []*x509.Certificate) bool {
	opts, ok := cas()
	if !ok {
		return false
	}
	if opts.Intermediates == nil && len(chain) > 1 {
		opts.Intermediates = x509.NewCertPool()
		for _, c := range chain[1:] {
			opts.Intermediates.AddCert(c)
		}
	}
	_, err := chain[0].Verify(opts)
	return err == nil
}

// certificateOf returns the certificate with which a client has opened the connection, or nil.
func certificateOf(req *http.Request) *x509.Certificate {
	if req.TLS == nil || len(req.TLS.PeerCertificates) == 0 {
		return nil
	}
	return req.TLS.PeerCertificates[0]
}

// EndingRefused ends the requests in flight of a client whose certificate is refused from then on,
// and closes connections that are no longer HTTP's, such as those of exec and port-forward.
func EndingRefused(lists []*refused.List, next Chain) Chain {
	if len(lists) == 0 {
		return next
	}
	return func(api http.Handler, c *genericapiserver.Config) http.Handler {
		handler := next(api, c)
		return http.HandlerFunc(func(resp http.ResponseWriter, req *http.Request) {
			cert := certificateOf(req)
			if cert == nil {
				handler.ServeHTTP(resp, req)
				return
			}
			for _, l := range lists {
				ctx, done := l.During(req.Context(), cert)
				defer done()
				req = req.WithContext(ctx)
			}
			if req.ProtoMajor == 1 { // no handler can take a connection of HTTP/2 over
				taken := &takenOver{ResponseWriter: resp, ctx: req.Context()}
				defer taken.release()
				resp = responsewriter.WrapForHTTP1Or2(taken)
			}
			handler.ServeHTTP(resp, req)
		})
	}
}

// takenOver closes the connection of a request when ctx ends, if a handler has taken it over.
// Upstream's proxy (apimachinery/pkg/util/proxy/upgradeaware.go:tryUpgrade) copies on until one of
// the two sides hangs up, whatever becomes of the request.
type takenOver struct {
	http.ResponseWriter
	ctx  context.Context
	stop func() bool
}

// Unwrap implements responsewriter.UserProvidedDecorator.
func (t *takenOver) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// Hijack implements http.Hijacker.
func (t *takenOver) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err == nil {
		t.stop = context.AfterFunc(t.ctx, func() { _ = conn.Close() }) // its handler closes it, too
	}
	return conn, buffered, err
}

// release leaves the connection to its owner after the request.
func (t *takenOver) release() {
	if t.stop != nil {
		t.stop()
	}
}
