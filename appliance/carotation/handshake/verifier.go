package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// probeTime bounds the question to one verifier.
const probeTime = 5 * time.Second

// Verifier is a server that verifies certificates of a CA: the kubelet of a node, an extension API
// server, or a member of etcd.
type Verifier struct {
	Name    string // of the node, of the APIService or of the member
	Address string // HOST:PORT; empty if none is known
	Host    string // by which its clients call it; empty for the address
	Path    string // of a question that changes nothing
	User    string // in whose name a front proxy asks; empty for its own
	Error   string // why it cannot be asked
}

// Verdict is the answer of a verifier to a certificate.
type Verdict struct {
	Name   string // of the verifier
	Trusts bool
	Err    error // why that is not known
}

// Ask shows a certificate to every verifier.
func Ask(ctx context.Context, verifiers []Verifier, pair tls.Certificate) []Verdict {
	all := make([]Verdict, len(verifiers))
	var asking sync.WaitGroup
	for i, v := range verifiers {
		asking.Go(func() {
			trusts, err := v.Accepts(ctx, pair)
			all[i] = Verdict{v.Name, trusts, err}
		})
	}
	asking.Wait()
	return all
}

// Accepts reports whether a verifier accepts a certificate. It answers 401 to one that it does not trust,
// and 403 to one whose user has no rights; or it ends the connection with an alert of TLS.
func (v Verifier) Accepts(ctx context.Context, pair tls.Certificate) (trusts bool, err error) {
	switch {
	case v.Error != "":
		return false, errors.New(v.Error)
	case v.Address == "":
		return false, errors.New("it has told no address")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: "https", Host: v.Address, Path: v.Path}).String(), nil)
	if err != nil {
		return false, err
	}
	if v.User != "" {
		req.Header.Set("X-Remote-User", v.User)
	}
	transport := &http.Transport{ // without a proxy: nothing within the cluster goes through one
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			ServerName: v.Host,
			// Nothing secret is sent, and the answer decides about this server only.
			InsecureSkipVerify: true, //nolint:gosec // see above
			// Whichever CAs it names: it may name none, or the one of before.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
		},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" { // crypto/tls calls an alert so
			return false, nil
		}
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode != http.StatusUnauthorized, nil
}
