package observe

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

const metricsPage = "../../docs/metrics.md"

// startBalancer runs a load balancer before the API server of c.
func startBalancer(t testing.TB, c *kthwtest.Controller) *kthwtest.Controller {
	t.Helper()
	return balance(t, []string{fmt.Sprintf("127.0.0.1:%d", c.Ports.Secure)}, "backend-ca: "+filepath.Join(c.Dir, "ca.pem"))
}

// count is how many series a family is in a scrape.
func count(f *dto.MetricFamily) (n int) {
	for _, m := range f.GetMetric() {
		switch {
		case m.Histogram != nil:
			n += len(m.Histogram.Bucket) + 2
		case m.Summary != nil:
			n += len(m.Summary.Quantile) + 2
		default:
			n++
		}
	}
	return n
}

// TestMetricsPage holds docs/metrics.md to what a controller and a load balancer
// show. Numbers of series depend on what a cluster has been through, so that those
// of the page may be off by a third.
func TestMetricsPage(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	lb := startBalancer(t, c)
	through(t, c, lb)
	kthwtest.WaitFor(t, "the first service account, hence all controllers", kthwtest.Soon, func() error {
		_, err := c.Client(t).CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	old, err := os.ReadFile(metricsPage)
	if err != nil && !harness.Updating() {
		t.Fatal(err)
	}
	harness.Golden(t, metricsPage, metricsText(t, c, lb, old))
}

// through sends a request through the balancer, so that it has something to count.
func through(t *testing.T, c, lb *kthwtest.Controller) {
	kthwtest.WaitFor(t, "a connection through the load balancer", kthwtest.Soon, func() error {
		if resp, err := asAdmin(t, c).Get(fmt.Sprintf("https://127.0.0.1:%d/readyz", lb.Ports.Secure)); err == nil {
			resp.Body.Close()
		}
		if text := read(t, plain, metricsURL(lb, "/metrics")); !strings.Contains(text, "kthwd_lb_sent_bytes_total{") || !strings.Contains(text, `result="ok"`) {
			return errors.New("not counted")
		}
		return nil
	})
}

func metricsText(t *testing.T, c, lb *kthwtest.Controller, old []byte) []byte {
	var b bytes.Buffer
	b.WriteString(`<!-- Generated from what a controller and a load balancer show, by "make golden". Do not edit. -->

# Metrics

[Metrics](operations/metrics.md) says where to find them and who may read them.

## How many series

Of a new cluster without nodes; those of kube-apiserver and kube-controller-manager grow with the kinds of objects and requests.

| process | path | families | series |
|---|---|---|---|
`)
	known := counts(old)
	own := map[string]map[string]*dto.MetricFamily{}
	for _, p := range []struct {
		name  string
		c     *kthwtest.Controller
		paths []string
	}{{"controller", c, paths}, {"load balancer", lb, paths[:1]}} {
		for _, path := range p.paths {
			families := parse(t, read(t, plain, metricsURL(p.c, path)))
			if path == "/metrics" {
				own[p.name] = families
			}
			series := 0
			for _, f := range families {
				series += count(f)
			}
			key := p.name + " " + path
			fmt.Fprintf(&b, "| %s | `%s` | %d | %d |\n", p.name, path, about(len(families), known[key][0]), about(series, known[key][1]))
		}
	}
	b.WriteString("\n## kthwd's own\n")
	for _, part := range []struct {
		title, process string
		of             func(string) bool
	}{
		{"Every process, and a controller's parts", "controller", func(name string) bool { return true }},
		{"A load balancer", "load balancer", func(name string) bool { return strings.HasPrefix(name, "kthwd_lb_") }},
	} {
		fmt.Fprintf(&b, "\n### %s\n\n| series | type | labels | is |\n|---|---|---|---|\n", part.title)
		for _, name := range slices.Sorted(maps.Keys(own[part.process])) {
			if f := own[part.process][name]; strings.HasPrefix(name, "kthwd_") && part.of(name) {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, strings.ToLower(f.GetType().String()), labels(f), f.GetHelp())
			}
		}
	}
	b.WriteString(`
A histogram has the classic buckets, and a native histogram beside them for a Prometheus that scrapes those: it tells times of 10 % apart, also of
connections that last for milliseconds or for days. The dashboard has queries for both. There are no exemplars here, since a connection that is
passed on belongs to no trace; with ` + "`--tracing-endpoint`" + ` the histograms at /metrics/kube-apiserver have those of requests that are traced.
`)
	b.WriteString("\nA load balancer that discovers its backends has the `kthwd_lb_discovery_*` series of [Discovery](operations/discovery.md) as well.\n")
	return b.Bytes()
}

func labels(f *dto.MetricFamily) string {
	all := map[string]bool{}
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			all["`"+l.GetName()+"`"] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(all)), " ")
}

var countRow = regexp.MustCompile("(?m)^\\| ([a-z ]+) \\| `(/[-a-z/]+)` \\| (\\d+) \\| (\\d+) \\|$")

// counts are the families and series that the page gives, by process and path.
func counts(page []byte) map[string][2]int {
	all := map[string][2]int{}
	for _, m := range countRow.FindAllSubmatch(page, -1) {
		families, _ := strconv.Atoi(string(m[3]))
		series, _ := strconv.Atoi(string(m[4]))
		all[string(m[1])+" "+string(m[2])] = [2]int{families, series}
	}
	return all
}

// about is what the page says if that is near enough, and otherwise n with two
// digits.
func about(n, said int) int {
	if math.Abs(float64(n-said)) <= float64(said)/3 {
		return said
	}
	unit := 1
	for n/unit >= 100 {
		unit *= 10
	}
	return (n + unit/2) / unit * unit
}

// TestPromtool has promtool judge the names and the help of kthwd's own series.
func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool := tool(t, "promtool", "prometheus")
	c := kthwtest.Start(t, kthwtest.Options{})
	for _, p := range []*kthwtest.Controller{c, startBalancer(t, c)} {
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(read(t, plain, metricsURL(p, "/metrics")))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("promtool: %v\n%s", err, out)
		}
	}
}
