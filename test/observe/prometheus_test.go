package observe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

const packaging = "../../packaging"

// tool finds one of Debian's programs, or skips.
func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		lacks(t, "no %s: Debian's package %s has it", name, pkg)
	}
	return path
}

// lacks skips a test because the machine lacks something. KTHWD_NO_SKIP makes that a
// failure, for machines where everything is installed.
func lacks(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("KTHWD_NO_SKIP") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// TestRules has promtool check what is shipped, and run the unit tests, of which
// each alert has one that fires and one that does not.
func TestRules(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile(filepath.Join(packaging, "prometheus/kthwd.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	unit := []string{"kthwd.rules.test.yml", "kthwd.rules.hours.test.yml", "kthwd.rules.days.test.yml"}
	var tests strings.Builder
	for _, file := range unit {
		data, err := os.ReadFile(filepath.Join(packaging, "prometheus", file))
		if err != nil {
			t.Fatal(err)
		}
		tests.Write(data)
	}
	for _, m := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		for _, what := range []string{" fires\n", " stays quiet\n"} {
			if !strings.Contains(tests.String(), "name: "+m[1]+what) {
				t.Errorf("no unit test: %s%s", m[1], what)
			}
		}
	}
	promtool := tool(t, "promtool", "prometheus")
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "kthwd.rules.yml"}, append([]string{"test", "rules"}, unit...)} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = filepath.Join(packaging, "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// server is a running Prometheus.
type server struct {
	url string
	log *kthwtest.Log
}

// prometheusOptions are the settings that a test adds to the shipped configuration.
type prometheusOptions struct {
	change func(config string) string
	args   []string
}

// startPrometheus runs Debian's Prometheus with the shipped configuration and
// rules, scraping each second, with alerts that wait for a second only and look half
// a minute back.
func startPrometheus(t *testing.T, controllers, all []string, o prometheusOptions) *server {
	t.Helper()
	path := tool(t, "prometheus", "prometheus")
	dir := t.TempDir()
	quoted := func(targets []string) string { return "['" + strings.Join(targets, "', '") + "']" }
	config := shipped(t, "prometheus/prometheus.yml")
	config = strings.Replace(config, "['127.0.0.1:10300']", quoted(all), 1) // of job kthwd
	config = strings.ReplaceAll(config, "['127.0.0.1:10300']", quoted(controllers))
	config = strings.ReplaceAll(config, "_interval: 15s", "_interval: 1s")
	if o.change != nil {
		config = o.change(config)
	}
	rules := regexp.MustCompile(`for: \d+[smh]`).ReplaceAllString(shipped(t, "prometheus/kthwd.rules.yml"), "for: 1s")
	rules = regexp.MustCompile(`\[\d+[mh]\]`).ReplaceAllString(rules, "[30s]")
	put(t, filepath.Join(dir, "prometheus.yml"), config)
	put(t, filepath.Join(dir, "kthwd.rules.yml"), rules)
	address := fmt.Sprintf("127.0.0.1:%d", kthwtest.FreePorts(t, "127.0.0.1").Metrics)
	s := &server{url: "http://" + address, log: &kthwtest.Log{}}
	cmd := exec.Command(path, append(o.args, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of prometheus:\n%s", s.log.Tail(60))
		}
	})
	return s
}

// jobLine begins a job of the configuration.
var jobLine = regexp.MustCompile(`- job_name: .*`)

func shipped(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(packaging, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// api asks Prometheus; the answer's data go into v.
func (s *server) api(path string, query url.Values, v any) error {
	resp, err := plain.Get(s.url + "/api/v1/" + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Error string
		Data  any
	}{Data: v}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// values is how many series a query has, and how many of them have a number.
func (s *server) values(query string) (n int, err error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	err = s.api("query", url.Values{"query": {query}}, &data)
	for _, r := range data.Result {
		if r.Value[1] != "NaN" {
			n++
		}
	}
	return n, err
}

// up waits until all targets are up.
func (s *server) up(t *testing.T, want int) {
	t.Helper()
	kthwtest.WaitFor(t, "all targets up", kthwtest.Soon, func() error {
		n, err := s.values("up == 1")
		if err == nil && n != want {
			err = fmt.Errorf("%d targets are up, want %d", n, want)
		}
		return err
	})
}

// firing tells whether an alert fires.
func (s *server) firing(alert string) (bool, error) {
	n, err := s.values(fmt.Sprintf("ALERTS{alertname=%q,alertstate=\"firing\"}", alert))
	return n > 0, err
}

func (s *server) await(t *testing.T, alert string, want bool, within time.Duration) {
	t.Helper()
	word := map[bool]string{true: " fires", false: " is over"}[want]
	kthwtest.WaitFor(t, alert+word, within, func() error {
		is, err := s.firing(alert)
		if err == nil && is != want {
			err = errors.New("not yet")
		}
		return err
	})
}

// clean requires Prometheus to have no complaints about its scrapes.
func (s *server) clean(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(s.log.String()) {
		for _, bad := range []string{"duplicate", "out of order", "out-of-order", "parse error", "Error on ingesting", "Append failed"} {
			if strings.Contains(line, bad) {
				t.Errorf("prometheus: %s", line)
			}
		}
	}
}

func needE2E(t *testing.T) {
	t.Helper()
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skip("part of make test-e2e")
	}
}

func metricsAddress(c *kthwtest.Controller) string {
	return fmt.Sprintf("127.0.0.1:%d", c.Ports.Metrics)
}

// TestDashboard evaluates each query of each panel in a Prometheus that has
// scraped a controller and a load balancer with some traffic: none is empty.
func TestDashboard(t *testing.T) {
	needE2E(t)
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	lb := startBalancer(t, c)
	p := startPrometheus(t, []string{metricsAddress(c)}, []string{metricsAddress(c), metricsAddress(lb)}, prometheusOptions{})
	p.up(t, 6)
	p.panels(t, c, lb)
	p.clean(t)
}

// panels waits for a value in each panel of the dashboard.
func (s *server) panels(t *testing.T, c, lb *kthwtest.Controller) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(shipped(t, "grafana/kthwd.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	admin := asAdmin(t, c)
	for _, panel := range dashboard.Panels {
		if panel.Type == "row" {
			continue
		}
		if len(panel.Targets) == 0 {
			t.Errorf("%s: no query", panel.Title)
		}
		for _, target := range panel.Targets {
			query := strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m").Replace(target.Expr)
			kthwtest.WaitFor(t, "a value in "+panel.Title, kthwtest.Soon, func() error {
				// New connections, so that there is something to count.
				if resp, err := admin.Get(fmt.Sprintf("https://127.0.0.1:%d/api", lb.Ports.Secure)); err == nil {
					resp.Body.Close()
					admin.CloseIdleConnections()
				}
				n, err := s.values(query)
				if err == nil && n == 0 {
					err = fmt.Errorf("empty: %s", query)
				}
				return err
			})
		}
	}
}

// TestNativeHistograms has a Prometheus that wants native histograms, hence protobuf,
// and keeps exemplars. It gets both, and the dashboard has its values there, too, where
// the classic buckets of the load balancer and of Kubernetes are not.
func TestNativeHistograms(t *testing.T) {
	needE2E(t)
	t.Parallel()
	_, collector := startTraces(t)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--tracing-endpoint=" + collector}})
	lb := startBalancer(t, c)
	p := startPrometheus(t, []string{metricsAddress(c)}, []string{metricsAddress(c), metricsAddress(lb)}, prometheusOptions{args: []string{"--enable-feature=native-histograms,exemplar-storage"}})
	p.up(t, 6)
	p.panels(t, c, lb)
	for _, name := range []string{"kthwd_lb_backend_connect_duration_seconds", "kthwd_lb_connection_duration_seconds", "kthwd_lb_health_check_duration_seconds"} {
		for query, want := range map[string]bool{
			"histogram_count(" + name + ") > 0": true, "histogram_quantile(0.99, " + name + ") > 0": true, name + "_bucket": false,
		} {
			if n, err := p.values(query); err != nil || n > 0 != want {
				t.Errorf("%s: got %d series, %v, want some: %v", query, n, err, want)
			}
		}
	}
	namespaces := c.Client(t).CoreV1().Namespaces()
	kthwtest.WaitFor(t, "the trace of a request in an exemplar", kthwtest.Soon, func() error {
		for range 50 { // one in a hundred is traced
			if _, err := namespaces.Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		var found []struct {
			Exemplars []struct{ Labels map[string]string }
		}
		err := p.api("query_exemplars", url.Values{
			"query": {"apiserver_request_duration_seconds"}, "start": {fmt.Sprint(time.Now().Add(-time.Hour).Unix())}, "end": {fmt.Sprint(time.Now().Add(time.Hour).Unix())},
		}, &found)
		if err == nil && (len(found) == 0 || found[0].Exemplars[0].Labels["trace_id"] == "") {
			err = fmt.Errorf("got %v", found)
		}
		return err
	})
	p.clean(t)
}
