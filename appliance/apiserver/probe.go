package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"kthwd/appliance/etcd"
	"kthwd/appliance/pki"
	"kthwd/appliance/supervise"
)

// probe polls /readyz until it is ok once, then calls ready.
func (a *Server) probe(ctx context.Context, ready func()) {
	report := supervise.Report(ctx)
	client, err := a.client()
	if err != nil {
		report.Starting(err.Error())
		return
	}
	defer client.CloseIdleConnections()
	for last := ""; ctx.Err() == nil; {
		err := Get(ctx, client, a.server+"/readyz")
		if err == nil {
			ready()
			return
		}
		if errors.Is(err, errUnauthorized) {
			client.CloseIdleConnections() // the next one shows the certificate as it is now
		}
		if err.Error() != last {
			last = err.Error()
			a.log.Debug("not ready yet", "reason", last)
			report.Starting(last)
		}
		supervise.Sleep(ctx, etcd.ReadyPoll)
	}
}

// client verifies the API server against the CA. Its certificate grants no rights.
func (a *Server) client() (*http.Client, error) {
	pool, err := pki.Pool(a.layout.CA())
	if err != nil {
		return nil, err
	}
	own := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // it may be renewed before the API server is ready
		cert, err := tls.LoadX509KeyPair(a.layout.Cert(pki.NameHealth), a.layout.Key(pki.NameHealth))
		return &cert, err
	}
	if _, err := own(nil); err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout:   readyTimeout,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, GetClientCertificate: own, MinVersion: tls.VersionTLS12}},
	}, nil
}

// errUnauthorized is the answer to a client whose certificate is not accepted, such as one that has expired.
var errUnauthorized = errors.New("401 Unauthorized")

// Get requests url and returns nil, or an error with the first failing check.
func Get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized:
		return fmt.Errorf("%s: %w", req.URL.Path, errUnauthorized)
	}
	for line := range strings.SplitSeq(string(body), "\n") {
		if check, failing := strings.CutPrefix(line, "[-]"); failing {
			return fmt.Errorf("%s: %s", req.URL.Path, check)
		}
	}
	return fmt.Errorf("%s: %s", req.URL.Path, resp.Status)
}
