package carotation

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

// probeTime bounds the question to one kubelet.
const probeTime = 5 * time.Second

// Kubelet is where a node's kubelet answers.
type Kubelet struct {
	Node    string
	Address string // HOST:PORT; empty if the node has told none
}

// Worker is a node, and whether its kubelet trusts the new CA.
type Worker struct {
	Node   string `json:"node"`
	Trusts bool   `json:"trusts"`
	Error  string `json:"error,omitempty"` // why that is not known
}

// workers asks the kubelet of every node with a certificate of the new CA: the kubelet refuses that
// before it trusts the CA.
func (r *Rotation) workers(ctx context.Context, s State) ([]Worker, error) {
	kubelets, err := r.cfg.Kubelets(ctx)
	if err != nil {
		return nil, fmt.Errorf("the nodes are not known: %w", err)
	}
	ca, err := s.ca()
	if err != nil {
		return nil, err
	}
	key := r.keptKey()
	if !pki.KeyOfCA(key, ca) {
		return nil, lacks(s.New)
	}
	pair, err := pki.KubeletProbe(r.cfg.Layout, ca, key, time.Now())
	if err != nil {
		return nil, err
	}
	all := make([]Worker, len(kubelets))
	var asking sync.WaitGroup
	for i, k := range kubelets {
		asking.Go(func() {
			all[i] = Worker{Node: k.Node}
			trusts, err := asks(ctx, k.Address, pair)
			if all[i].Trusts = trusts; err != nil {
				all[i].Error = err.Error()
			}
		})
	}
	asking.Wait()
	return all, nil
}

// asks reports whether a kubelet accepts a certificate. It answers 401 to one that it does not trust,
// and 403 to one whose user has no rights.
func asks(ctx context.Context, address string, pair tls.Certificate) (trusts bool, err error) {
	if address == "" {
		return false, fmt.Errorf("it has told no address")
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: "https", Host: address, Path: "/healthz"}).String(), nil)
	if err != nil {
		return false, err
	}
	transport := &http.Transport{ // without a proxy: nothing within the cluster goes through one
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			// Nothing secret is sent, and the answer decides about this kubelet only.
			InsecureSkipVerify: true, //nolint:gosec // see above
			// Whichever CAs it names: it may name none, or the one of before.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
		},
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode != http.StatusUnauthorized, nil
}

// maySign refuses to sign with a CA that a kubelet does not trust, or that clients which follow a
// file may not have read yet.
func (r *Rotation) maySign(ctx context.Context, s State, now time.Time) error {
	const hint = "copy ca.pem to that worker, where its kubelet's clientCAFile and kubeconfig name it; --force goes on all the same, and what the worker refuses fails until then"
	all, err := r.workers(ctx, s)
	if err != nil {
		return err
	}
	var said []string
	for _, w := range all {
		switch {
		case w.Error != "":
			said = append(said, fmt.Sprintf("%s cannot be asked: %s", w.Node, w.Error))
		case !w.Trusts:
			said = append(said, w.Node+" does not trust the new CA")
		}
	}
	if len(said) > 0 {
		return advice.With(fmt.Errorf("%s", strings.Join(said, "; ")), hint)
	}
	if at := s.Since.Add(followed); now.Before(at) {
		return advice.With(fmt.Errorf("programs that follow ca.pem may not have read the new one before %s", at.UTC().Format(time.RFC3339)),
			"wait until then; or go on with --force where nothing but kthwd follows it")
	}
	return nil
}
