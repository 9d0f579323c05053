package attack

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// M9: client_ca_file: ca.pem lets every certificate of the cluster read the metrics address, each
// worker's included. kthwd says so, and what docs/operations/metrics.md advises shuts the workers
// out and lets Prometheus in.
func TestMetricsClientsAreNamed(t *testing.T) {
	t.Parallel()
	dir, ports := filepath.Join(t.TempDir(), "c0"), kthwtest.FreePorts(t, here)
	if code, out := kthwd(t, "pki", "init", "--config=", "--data-dir="+dir, "--bind-address="+here, "--advertise-address="+here, fmt.Sprintf("--secure-port=%d", ports.Secure)); code != 0 {
		t.Fatalf("kthwd pki init: exit code %d\n%s", code, out)
	}
	own := ownAuthority(t)
	writePEM(t, tls.Certificate{Certificate: [][]byte{own.cert.Raw}, PrivateKey: own.key}, filepath.Join(dir, "monitoring-ca.pem"), filepath.Join(t.TempDir(), "key.pem"))
	web := filepath.Join(dir, "web.yaml")
	clients := func(settings string) { // read again for each connection
		t.Helper()
		text := "tls_server_config: {cert_file: kubernetes.pem, key_file: kubernetes-key.pem, client_auth_type: RequireAndVerifyClientCert, " + settings + "}\n"
		if err := os.WriteFile(web, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	clients("client_ca_file: ca.pem")
	c := &cluster{Controller: kthwtest.Start(t, kthwtest.Options{Dir: dir, Address: here, Ports: &ports, NoWait: true,
		Args: []string{fmt.Sprintf("--metrics-address=0.0.0.0:%d", ports.Metrics), "--metrics-web-config=" + web}}), ca: readCA(t, dir, "ca")}
	admin := c.pair(t, "admin")
	kthwtest.WaitFor(t, "the controller to be ready", kthwtest.Soon, func() error {
		r, err := c.report(t, admin)
		if err == nil && !r.Ready {
			err = errors.New(r.Reason)
		}
		return err
	})
	const name = "prometheus.example"
	monitoring, err := c.approve(t, "prometheus", name)
	if err != nil {
		t.Fatal(err)
	}
	worker := c.ca.sign(t, pkix.Name{CommonName: "system:node:w1", Organization: []string{"system:nodes"}}, "w1", attacker.source())
	ofOwn := own.sign(t, pkix.Name{CommonName: "prometheus"})

	if _, err := c.report(t, worker); err != nil {
		t.Errorf("with ca.pem and nothing else, a worker: got %v; want it let in, or this test shows nothing", err)
	}
	c.wantFinding(t, admin, "with ca.pem and nothing else", true)
	if log := c.Log.String(); !strings.Contains(log, "each worker's included") {
		t.Errorf("the log of the start does not say that workers are let in")
	}
	for _, advice := range []struct {
		settings    string
		in          tls.Certificate
		out, others []tls.Certificate
	}{
		{"client_ca_file: ca.pem, client_allowed_sans: [" + name + "]", monitoring, []tls.Certificate{worker, admin}, []tls.Certificate{ofOwn}},
		{"client_ca_file: monitoring-ca.pem", ofOwn, []tls.Certificate{worker, admin}, []tls.Certificate{monitoring}},
	} {
		clients(advice.settings)
		c.wantFinding(t, advice.in, advice.settings, false)
		for _, cert := range append(advice.out, advice.others...) {
			if r, err := c.report(t, cert); err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
				t.Errorf("%s, with another certificate: got %q, %v; want it refused by TLS", advice.settings, r.Version, err)
			}
		}
	}
	clients("client_ca_file: ca.pem")
	c.wantFinding(t, worker, "with ca.pem again", true)
}

// report reads the status from the metrics address, from the attacker's machine.
func (c *cluster) report(t *testing.T, cert tls.Certificate) (r status.Report, err error) {
	t.Helper()
	// The certificate is shown whether or not the server names its CA.
	client := &http.Client{Timeout: kthwtest.Soon, Transport: &http.Transport{DisableKeepAlives: true, DialContext: attacker.dial, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}}}
	resp, err := client.Get(fmt.Sprintf("https://%s:%d/status.json", c.Address, c.Ports.Metrics))
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return r, errors.New(resp.Status)
	}
	return r, json.NewDecoder(resp.Body).Decode(&r)
}

// wantFinding compares whether kthwd says that the metrics address is open to more clients than
// it seems.
func (c *cluster) wantFinding(t *testing.T, as tls.Certificate, when string, want bool) {
	t.Helper()
	r, err := c.report(t, as)
	got := slices.ContainsFunc(r.Findings, func(f status.Finding) bool { return f.Kind == "metrics_clients" })
	if err != nil || got != want {
		t.Errorf("%s: %v; kthwd says that workers are let in: %t, want %t", when, err, got, want)
	}
}
