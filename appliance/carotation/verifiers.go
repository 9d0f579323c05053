package carotation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

// probeTime bounds the question to one verifier.
const probeTime = 5 * time.Second

// Verifier is a server that verifies certificates of the CA: the kubelet of a node, an extension API
// server, or a member of etcd.
type Verifier struct {
	Name    string // of the node, of the APIService or of the member
	Address string // HOST:PORT; empty if none is known
	Host    string // by which its clients call it; empty for the address
	Path    string // of a question that changes nothing
	User    string // in whose name a front proxy asks; empty for its own
	Error   string // why it cannot be asked
}

// Worker is a node, and whether its kubelet trusts the new CA.
type Worker struct {
	Node   string `json:"node"`
	Trusts bool   `json:"trusts"`
	Error  string `json:"error,omitempty"` // why that is not known
}

// Server is an extension API server, and whether it trusts the new CA.
type Server struct {
	Name   string `json:"name"` // of its APIService, and the address if it has several
	Trusts bool   `json:"trusts"`
	Error  string `json:"error,omitempty"` // why that is not known
}

// verdict is the answer of a verifier to a certificate of the new CA.
type verdict struct {
	name   string
	trusts bool
	err    error
}

// probe asks every verifier with a certificate of the new CA: it refuses that before it trusts the CA.
func (r *Rotation) probe(ctx context.Context, s State) ([]verdict, error) {
	verifiers, err := r.cfg.Verifiers(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := s.ca()
	if err != nil {
		return nil, err
	}
	pair, err := r.probePair(s, ca)
	if err != nil {
		return nil, err
	}
	all := make([]verdict, len(verifiers))
	var asking sync.WaitGroup
	for i, v := range verifiers {
		asking.Go(func() {
			trusts, err := v.asked(ctx, pair)
			all[i] = verdict{v.Name, trusts, err}
		})
	}
	asking.Wait()
	return all, nil
}

// probePair is a certificate of the new CA. A controller that has the key of etcd's new CA no longer, because
// that has signed, shows its own.
func (r *Rotation) probePair(s State, ca *x509.Certificate) (tls.Certificate, error) {
	key := r.keptKey()
	switch {
	case pki.KeyOfCA(key, ca):
		return pki.Probe(r.cfg.Layout, r.a.file, ca, key, time.Now())
	case r.a.CA == Etcd && pki.Shows(r.cfg.Layout, r.a.file, []*x509.Certificate{ca}) == s.New:
		return r.ownPair()
	}
	return tls.Certificate{}, r.a.lacks(s.New)
}

// membersReady refuses a step while a member of etcd refuses certificates of the new CA: it still has the CAs with
// which it has started, and would lose its connections to the others. all are the answers of the controllers.
func (r *Rotation) membersReady(ctx context.Context, s State, all []Controller) error {
	var said, names []string
	for _, c := range all {
		if !slices.Contains(c.Accepts, s.New) {
			said, names = append(said, fmt.Sprintf("%s: its etcd does not accept certificates of %s yet", c.Name, Short(s.New))), append(names, c.Name)
		}
	}
	verdicts, err := r.probe(ctx, s)
	if err != nil {
		return err
	}
	for _, v := range verdicts {
		switch {
		case slices.Contains(names, v.name):
		case v.err != nil:
			said, names = append(said, fmt.Sprintf("%s cannot be asked: %v", v.name, v.err)), append(names, v.name)
		case !v.trusts:
			said, names = append(said, fmt.Sprintf("%s: its etcd refuses a certificate of %s", v.name, Short(s.New))), append(names, v.name)
		}
	}
	if len(said) == 0 {
		return nil
	}
	return advice.With(errors.New(strings.Join(said, "; ")),
		"restart kthwd on "+strings.Join(names, ", ")+", one after the other; --force changes nothing about this, for members that refuse each other have no quorum")
}

// asked reports whether a verifier accepts a certificate. It answers 401 to one that it does not trust,
// and 403 to one whose user has no rights; or it ends the connection with an alert of TLS.
func (v Verifier) asked(ctx context.Context, pair tls.Certificate) (trusts bool, err error) {
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

// verifiers tells in a report which verifiers trust the new CA.
func (r *Rotation) verifiers(ctx context.Context, s State, out *Report) {
	all, err := r.probe(ctx, s)
	if err != nil { // the controllers are shown all the same
		all = []verdict{{name: "workers", err: err}}
		if r.a.CA == FrontProxy {
			all[0].name = "servers"
		}
	}
	for _, v := range all {
		said := ""
		if v.err != nil {
			said = v.err.Error()
		}
		if r.a.CA == Cluster {
			out.Workers = append(out.Workers, Worker{v.name, v.trusts, said})
		} else {
			out.Servers = append(out.Servers, Server{v.name, v.trusts, said})
		}
	}
}

// maySign refuses to sign with a CA that a verifier does not trust, or that clients which follow a
// file may not have read yet.
func (r *Rotation) maySign(ctx context.Context, s State, now time.Time) error {
	hint := "copy ca.pem to that worker, where its kubelet's clientCAFile and kubeconfig name it; --force goes on all the same, and what the worker refuses fails until then"
	if r.a.CA == FrontProxy {
		hint = "bring front-proxy-ca.pem to that extension API server, or restart it if it reads the ConfigMap at its start only; --force goes on all the same, and what the server refuses fails until then"
	}
	all, err := r.probe(ctx, s)
	if err != nil {
		return err
	}
	var said []string
	for _, v := range all {
		switch {
		case v.err != nil:
			said = append(said, fmt.Sprintf("%s cannot be asked: %v", v.name, v.err))
		case !v.trusts:
			said = append(said, v.name+" does not trust the new CA")
		}
	}
	if len(said) > 0 {
		return advice.With(errors.New(strings.Join(said, "; ")), hint)
	}
	if at := s.Since.Add(followed); r.a.CA == Cluster && now.Before(at) { // every server that verifies the front proxy has been asked
		return advice.With(fmt.Errorf("programs that follow ca.pem may not have read the new one before %s", at.UTC().Format(time.RFC3339)),
			"wait until then; or go on with --force where nothing but kthwd follows it")
	}
	return nil
}
