package carotation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/carotation/handshake"
	"kthwd/appliance/pki"
)

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

// probe asks every verifier with a certificate of the new CA: it refuses that before it trusts the CA.
func (r *Rotation) probe(ctx context.Context, s castate.State) ([]handshake.Verdict, error) {
	verifiers, err := r.cfg.Verifiers(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := s.CA()
	if err != nil {
		return nil, err
	}
	pair, err := r.probePair(s, ca)
	if err != nil {
		return nil, err
	}
	return handshake.Ask(ctx, verifiers, pair), nil
}

// probePair is a certificate of the new CA. A controller that has the key of etcd's new CA no longer, because
// that has signed, shows its own.
func (r *Rotation) probePair(s castate.State, ca *x509.Certificate) (tls.Certificate, error) {
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
func (r *Rotation) membersReady(ctx context.Context, s castate.State, all []Controller) error {
	var said, names []string
	for _, c := range all {
		if !slices.Contains(c.Accepts, s.New) {
			said, names = append(said, fmt.Sprintf("%s: its etcd does not accept certificates of %s yet", c.Name, castate.Short(s.New))), append(names, c.Name)
		}
	}
	verdicts, err := r.probe(ctx, s)
	if err != nil {
		return err
	}
	for _, v := range verdicts {
		switch {
		case slices.Contains(names, v.Name):
		case v.Err != nil:
			said, names = append(said, fmt.Sprintf("%s cannot be asked: %v", v.Name, v.Err)), append(names, v.Name)
		case !v.Trusts:
			said, names = append(said, fmt.Sprintf("%s: its etcd refuses a certificate of %s", v.Name, castate.Short(s.New))), append(names, v.Name)
		}
	}
	if len(said) == 0 {
		return nil
	}
	return advice.With(errors.New(strings.Join(said, "; ")),
		"restart kthwd on "+strings.Join(names, ", ")+", one after the other; --force changes nothing about this, for members that refuse each other have no quorum")
}

// verifiers tells in a report which verifiers trust the new CA.
func (r *Rotation) verifiers(ctx context.Context, s castate.State, out *Report) {
	all, err := r.probe(ctx, s)
	if err != nil { // the controllers are shown all the same
		all = []handshake.Verdict{{Name: "workers", Err: err}}
		if r.a.CA == FrontProxy {
			all[0].Name = "servers"
		}
	}
	for _, v := range all {
		said := ""
		if v.Err != nil {
			said = v.Err.Error()
		}
		if r.a.CA == Cluster {
			out.Workers = append(out.Workers, Worker{v.Name, v.Trusts, said})
		} else {
			out.Servers = append(out.Servers, Server{v.Name, v.Trusts, said})
		}
	}
}

// maySign refuses to sign with a CA that a verifier does not trust, or that clients which follow a
// file may not have read yet.
func (r *Rotation) maySign(ctx context.Context, s castate.State, now time.Time) error {
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
		case v.Err != nil:
			said = append(said, fmt.Sprintf("%s cannot be asked: %v", v.Name, v.Err))
		case !v.Trusts:
			said = append(said, v.Name+" does not trust the new CA")
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
