package observe

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestBehindTLS makes a controller and a load balancer require a client certificate at
// the metrics address: only a client that has one sees the status, the page and, with
// Prometheus in its shipped configuration, the series.
func TestBehindTLS(t *testing.T) {
	needE2E(t)
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	other := filepath.Join(t.TempDir(), "other")
	at, ports := kthwtest.FreePorts(t, "127.0.0.1"), kthwtest.FreePorts(t, "127.0.0.1")
	for _, d := range []string{dir, other} {
		if out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--data-dir="+d, "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", at.Secure)).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	put(t, file("web.yaml"), "tls_server_config: {cert_file: kubernetes.pem, key_file: kubernetes-key.pem, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem}\n")
	c := kthwtest.Start(t, kthwtest.Options{Dir: dir, Ports: &at, NoWait: true, Args: []string{"--metrics-web-config=" + file("web.yaml")}})
	put(t, file("lb.yaml"), fmt.Sprintf("role: lb\nstatus-socket: ''\nmetrics-web-config: web.yaml\nlisten: ['127.0.0.1:%d']\nbackend: ['127.0.0.1:%d']\nbackend-ca: ca.pem\n", ports.Secure, c.Ports.Secure))
	lb := kthwtest.Start(t, kthwtest.Options{File: file("lb.yaml"), Ports: &ports, NoWait: true})

	for _, process := range []*kthwtest.Controller{c, lb} {
		ask := func(certificate string) (string, error) {
			out, err := exec.Command(kthwtest.Binary(t), "status", "--server=https://"+metricsAddress(process), "--certificate-authority="+file("ca.pem"),
				"--client-certificate="+filepath.Join(certificate, "admin.pem"), "--client-key="+filepath.Join(certificate, "admin-key.pem")).CombinedOutput()
			return string(out), err
		}
		kthwtest.WaitFor(t, "a status that is healthy", kthwtest.Soon, func() error {
			if process.Exited() {
				t.Fatal("kthwd has ended")
			}
			out, err := ask(dir)
			if err != nil || !strings.Contains(out, "\nready\n") {
				return errors.Join(fmt.Errorf("status: %s", out), err)
			}
			return nil
		})
		if out, err := ask(other); err == nil || strings.Contains(out, "ready") || !strings.Contains(out, "hint: it requires a client certificate") {
			t.Errorf("status, with another CA's certificate: got %v, %s", err, out)
		}
		right, stranger := asAdmin(t, &kthwtest.Controller{Dir: dir}), asAdmin(t, &kthwtest.Controller{Dir: dir})
		stranger.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{clientPair(t, other, "admin")}
		for path, want := range map[string]string{"/": `<main id="main">`, "/status.json": `"components"`, "/metrics": "kthwd_ready 1", "/readyz": "ok"} {
			url := "https://" + metricsAddress(process) + path
			if text := read(t, right, url); !strings.Contains(text, want) {
				t.Errorf("%s: lacks %s", url, want)
			}
			if resp, err := stranger.Get(url); err == nil {
				resp.Body.Close()
				t.Errorf("%s, with another CA's certificate: got %s", url, resp.Status)
			}
		}
	}
	secure := fmt.Sprintf("\n  scheme: https\n  tls_config: {ca_file: %s, cert_file: %s, key_file: %s}\n", file("ca.pem"), file("admin.pem"), file("admin-key.pem"))
	p := startPrometheus(t, []string{metricsAddress(c)}, []string{metricsAddress(c), metricsAddress(lb)}, prometheusOptions{change: func(config string) string {
		return jobLine.ReplaceAllString(config, "$0"+secure)
	}})
	p.up(t, 6)
	p.clean(t)
}
