// Package observe checks that a running kthwd's metrics keep their promises: each
// program's series at one place, none lost and none twice.
package observe

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"kthwd/test/kthwtest"
)

// paths are those at which a controller's series are.
var paths = []string{"/metrics", "/metrics/etcd", "/metrics/kube-apiserver", "/metrics/kube-controller-manager", "/metrics/kube-scheduler"}

func read(t testing.TB, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %v", url, resp.Status, err)
	}
	return string(text)
}

func parse(t testing.TB, text string) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func metricsURL(c *kthwtest.Controller, path string) string {
	return fmt.Sprintf("http://%s:%d%s", c.Address, c.Ports.Metrics, path)
}

// plain sends requests without a certificate.
var plain = &http.Client{Timeout: 20 * time.Second}

// asAdmin queries the programs' own ports.
func asAdmin(t testing.TB, c *kthwtest.Controller) *http.Client {
	t.Helper()
	return client(t, c, clientPair(t, c.Dir, "admin"))
}

// asController queries etcd, which answers controllers only.
func asController(t testing.TB, c *kthwtest.Controller) *http.Client {
	t.Helper()
	return client(t, c, clientPair(t, c.Dir, "etcd"))
}

func client(t testing.TB, c *kthwtest.Controller, pair tls.Certificate) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	for _, name := range []string{"ca.pem", "etcd-ca.pem"} {
		ca, err := os.ReadFile(filepath.Join(c.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		pool.AppendCertsFromPEM(ca)
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}}}
}

// clientPair reads a certificate and its key from a data directory.
func clientPair(t testing.TB, dir, name string) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestFamilies holds that what upstream shows, at any of its ports, is shown at
// exactly one path here.
func TestFamilies(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	admin := asAdmin(t, c)
	upstream := map[string]bool{}
	for name := range parse(t, read(t, asController(t, c), fmt.Sprintf("https://127.0.0.1:%d/metrics", c.Ports.EtcdClient))) {
		upstream[name] = true
	}
	for _, url := range []string{
		fmt.Sprintf("https://127.0.0.1:%d/metrics", c.Ports.Secure),
		fmt.Sprintf("https://127.0.0.1:%d/metrics", c.Ports.ControllerManager),
		fmt.Sprintf("https://127.0.0.1:%d/metrics", c.Ports.Scheduler),
	} {
		for name := range parse(t, read(t, admin, url)) {
			upstream[name] = true
		}
	}
	at := map[string][]string{}
	for _, path := range paths {
		for name := range parse(t, read(t, plain, metricsURL(c, path))) {
			at[name] = append(at[name], path)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(at)) {
		if len(at[name]) > 1 {
			t.Errorf("%s is at %v", name, at[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(upstream)) {
		if at[name] == nil && !strings.HasPrefix(name, "promhttp_") { // about upstream's handlers, which nobody asks here
			t.Errorf("%s is lost", name)
		}
	}
	for name, path := range map[string]string{
		"kthwd_build_info": "/metrics", "go_goroutines": "/metrics", "process_open_fds": "/metrics",
		"etcd_server_has_leader": "/metrics/etcd", "grpc_server_handled_total": "/metrics/etcd",
		"apiserver_request_total": "/metrics/kube-apiserver", "etcd_request_duration_seconds": "/metrics/kube-apiserver",
		"scheduler_pending_pods": "/metrics/kube-scheduler",
		"workqueue_depth":        "/metrics/kube-controller-manager",
	} {
		if path != "" && !slices.Equal(at[name], []string{path}) {
			t.Errorf("%s: got %v, want %s", name, at[name], path)
		}
	}
}
