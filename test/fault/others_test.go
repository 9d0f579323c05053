package fault

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// clusterStatus runs kthwd status --cluster on a controller.
func clusterStatus(t *testing.T, c *kthwtest.Controller, more ...string) (out string, code int) {
	t.Helper()
	cmd := exec.Command(kthwtest.Binary(t), append([]string{"status", "--cluster", "--config=", "--data-dir=" + c.Dir}, more...)...)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// words are the health of each controller as one of them knows it; "no answer" for one
// that does not answer.
func words(t *testing.T, c *kthwtest.Controller) (all map[string]string, code int) {
	t.Helper()
	text, code := clusterStatus(t, c, "-o", "json")
	var cluster status.Cluster
	if err := json.Unmarshal([]byte(text), &cluster); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	all = map[string]string{}
	for _, o := range cluster.Controllers {
		all[o.Name] = string(o.Health)
		if o.Error != "" {
			all[o.Name] = "no answer"
		}
	}
	return all, code
}

// Every controller knows the state of the others, also of one that is killed, and without
// a quorum. Nobody but a controller is told.
func clusterStatusOfThree(t *testing.T, m *made, all *[3]*kthwtest.Controller) {
	await := func(c *kthwtest.Controller, want map[string]string, code int) {
		t.Helper()
		kthwtest.WaitFor(t, fmt.Sprint("the cluster to be ", want), soon, func() error {
			if got, exit := words(t, c); fmt.Sprint(got) != fmt.Sprint(want) || exit != code {
				table, _ := clusterStatus(t, c)
				return fmt.Errorf("got %v and exit code %d:\n%s", got, exit, table)
			}
			return nil
		})
	}
	for _, c := range all {
		await(c, map[string]string{"c0": "healthy", "c1": "healthy", "c2": "healthy"}, 0)
	}
	tellsControllersOnly(t, m, all[1])

	all[2].Signal(t, syscall.SIGKILL)
	all[2].Wait(t, soon)
	await(all[0], map[string]string{"c0": "degraded", "c1": "degraded", "c2": "no answer"}, 2)
	// A connection that was open at the kill gives another reason, once.
	for what, says := range map[string]struct {
		text func() string
		want []string
	}{
		"the table": {func() string { out, _ := clusterStatus(t, all[0]); return out },
			[]string{"c0 (here)", "does not answer: connection refused", "c2 cannot be reached", "0 of 3 controllers are healthy"}},
		"the page": {func() string { return get(t, all[0]) }, []string{"does not answer: connection refused", "c2: no answer"}},
	} {
		kthwtest.WaitFor(t, what+" to say why c2 does not answer", soon, func() error {
			text := says.text()
			for _, want := range says.want {
				if !strings.Contains(text, want) {
					return fmt.Errorf("it lacks %q:\n%s", want, text)
				}
			}
			return nil
		})
	}

	all[1].Signal(t, syscall.SIGKILL)
	all[1].Wait(t, soon)
	await(all[0], map[string]string{"c0": "down", "c1": "no answer", "c2": "no answer"}, 2)
	all[1] = m.start(t, 1)
	all[2] = m.start(t, 2)
	for _, c := range all {
		c.WaitReady(t)
		await(c, map[string]string{"c0": "healthy", "c1": "healthy", "c2": "healthy"}, 0)
	}
}

func get(t *testing.T, c *kthwtest.Controller) string {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://%s:%d/", c.Address, c.Ports.Metrics))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// tellsControllersOnly asks for a controller's state with several certificates.
func tellsControllersOnly(t *testing.T, m *made, c *kthwtest.Controller) {
	t.Helper()
	stranger := filepath.Join(t.TempDir(), "stranger")
	if out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--advertise-address=127.0.0.1", "--data-dir="+stranger).CombinedOutput(); err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
	ca, err := os.ReadFile(filepath.Join(c.Dir, "etcd-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	for _, tt := range []struct {
		what, dir, name string
		told            bool
	}{
		{"no certificate", "", "", false},
		{"a controller of another cluster", stranger, "etcd", false},
		{"the API server", c.Dir, "kubernetes", false},
		{"the health bridge", c.Dir, "kthwd-health", false},
		{"a controller", filepath.Join(m.dir, "c0"), "etcd", true},
	} {
		config := &tls.Config{RootCAs: pool}
		if tt.dir != "" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(tt.dir, tt.name+".pem"), filepath.Join(tt.dir, tt.name+"-key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		client := http.Client{Timeout: soon, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		resp, err := client.Get(fmt.Sprintf("https://%s:%d/kthwd/status", c.Address, c.Ports.EtcdClient))
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		var state status.Controller
		told := err == nil && json.Unmarshal(body, &state) == nil && state.Name == "c1"
		if told != tt.told {
			t.Errorf("%s: told %v, want %v: %v %s", tt.what, told, tt.told, err, body)
		}
		if !tt.told && strings.Contains(string(body), "health") {
			t.Errorf("%s: got %s", tt.what, body)
		}
	}
}
