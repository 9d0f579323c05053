package benchlb

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"text/tabwriter"

	"kthwd/test/lbtest"
	"kthwd/test/report"
)

// metric is a row of the table.
type metric struct {
	key    string // in the JSON line
	what   string
	unit   string
	higher bool // more is better
	reach  target
}

// target is the goal for a metric; the zero value is none.
type target struct {
	kind  targetKind
	value float64
}

type targetKind int

const (
	forInformation targetKind = iota
	ofBetter                  // times the better of nginx and HAProxy
	ofNginx                   // times nginx's
	atMost                    // a number
)

// The targets are those of the project's issue 3, "Numbers".
var (
	metricRequests        = &metric{"requests", "requests/s, kept-alive connections", "/s", true, target{ofBetter, 1}}
	metricRequestCPU      = &metric{"requests_cpu", "  balancer's CPU time per request", "µs", false, target{}}
	metricConnections     = &metric{"connections", "new connection per request", "/s", true, target{ofBetter, 1}}
	metricConnectionCPU   = &metric{"connections_cpu", "  balancer's CPU time per connection", "µs", false, target{}}
	metricBulk            = &metric{"bulk", "bulk throughput, one stream", "Gbit/s", true, target{ofBetter, 1.3}}
	metricBulkCPU         = &metric{"bulk_cpu", "  balancer's CPU time per GB", "s", false, target{}}
	metricIdleMemory      = &metric{"idle_memory", "idle connections: user memory each", "KiB", false, target{atMost, 10}}
	metricIdleTotal       = &metric{"idle_total", "  user memory of the balancer in all", "MiB", false, target{}}
	metricIdleDescriptors = &metric{"idle_descriptors", "  descriptors each", "", false, target{atMost, 2.01}}
	metricIdlePipes       = &metric{"idle_pipes", "  of them ends of pipes", "", false, target{atMost, 0.01}}
	metricIdleCPU         = &metric{"idle_cpu", "  CPU used by the balancer meanwhile", "%", false, target{}}
	metricP50             = &metric{"p50", "added latency at half load, p50", "µs", false, target{}}
	metricP99             = &metric{"p99", "added latency at half load, p99", "µs", false, target{ofNginx, 1}}
	metricDirectP50       = &metric{"direct_p50", "  latency without a balancer, p50", "µs", false, target{}}
	metricDirectP99       = &metric{"direct_p99", "  latency without a balancer, p99", "µs", false, target{}}
	metricLatencyCPU      = &metric{"latency_cpu", "  balancer's CPU time per request then", "µs", false, target{}}
	metricMixedP50        = &metric{"mixed_p50", "small requests beside two bulk streams, p50", "µs", false, target{}}
	metricMixedP99        = &metric{"mixed_p99", "small requests beside two bulk streams, p99", "µs", false, target{}}
	metricMixedBulk       = &metric{"mixed_bulk", "  throughput of these streams", "Gbit/s", true, target{}}
	metricPacedP50        = &metric{"paced_p50", "small requests beside 4 Gbit/s, p50", "µs", false, target{}}
	metricPacedP99        = &metric{"paced_p99", "small requests beside 4 Gbit/s, p99", "µs", false, target{ofNginx, 1}}
	metricPacedBulk       = &metric{"paced_bulk", "  throughput of these streams", "Gbit/s", true, target{}}
	metricBurstP50        = &metric{"burst_p50", "5000 clients at once, p50", "ms", false, target{}}
	metricBurstP99        = &metric{"burst_p99", "5000 clients at once, p99", "ms", false, target{ofNginx, 1}}
	metricBurstRatio      = &metric{"burst_ratio", "  p99 beside nginx's burst of the same turn", "", false, target{atMost, 1}}
	metricBurstLost       = &metric{"burst_lost", "  connections that the listen queue lost", "", false, target{atMost, 0}}
	metricChecksCPU       = &metric{"checks_cpu", "checks of 60 backends: CPU", "% of a core", false, target{atMost, 2}}
	metricNoChecksCPU     = &metric{"no_checks_cpu", "  CPU without checks", "% of a core", false, target{}}
	metricOthers          = &metric{"others", "machine used by other processes meanwhile", "%", false, target{}}

	metrics = []*metric{
		metricRequests, metricRequestCPU, metricConnections, metricConnectionCPU, metricBulk, metricBulkCPU,
		metricIdleMemory, metricIdleTotal, metricIdleDescriptors, metricIdlePipes, metricIdleCPU,
		metricP50, metricP99, metricDirectP50, metricDirectP99, metricLatencyCPU,
		metricMixedP50, metricMixedP99, metricMixedBulk,
		metricPacedP50, metricPacedP99, metricPacedBulk,
		metricBurstP50, metricBurstP99, metricBurstRatio, metricBurstLost, metricChecksCPU, metricNoChecksCPU, metricOthers,
	}
)

func (t target) String() string {
	switch t.kind {
	case ofBetter:
		return fmt.Sprintf("%g × better", t.value)
	case ofNginx:
		return fmt.Sprintf("%g × nginx", t.value)
	case atMost:
		return fmt.Sprintf("≤ %g", t.value)
	default:
		return ""
	}
}

// results holds the samples of a run.
type results struct {
	samples  map[*metric]map[string][]report.Sample // by side
	versions map[string]string
}

func newResults() *results {
	return &results{samples: map[*metric]map[string][]report.Sample{}, versions: map[string]string{"go": runtime.Version()}}
}

func (r *results) add(m *metric, side string, round int, value float64) {
	if r.samples[m] == nil {
		r.samples[m] = map[string][]report.Sample{}
	}
	r.samples[m][side] = append(r.samples[m][side], report.Sample{Round: round, Value: value})
}

// first returns the first sample of a metric.
func (r *results) first(m *metric, side string) (float64, error) {
	if samples := r.samples[m][side]; len(samples) > 0 {
		return samples[0].Value, nil
	}
	return 0, errMissing
}

// summary is the JSON of one metric.
type summary struct {
	Unit  string                    `json:"unit,omitempty"`
	Sides map[string]*report.Spread `json:"sides"`
	Ratio *float64                  `json:"ratio,omitempty"` // of kthwd's median to the other's
	Pairs []float64                 `json:"pairs,omitempty"` // the same of each round
	To    string                    `json:"to,omitempty"`    // the other side of the ratio: the better of nginx and haproxy, or nginx
	Reach string                    `json:"reach,omitempty"`
	Met   string                    `json:"met,omitempty"`
}

func (r *results) summary(m *metric) summary {
	s := summary{Unit: m.unit, Sides: map[string]*report.Spread{}, Reach: m.reach.String()}
	for side, samples := range r.samples[m] {
		s.Sides[side] = report.SpreadOf(samples)
	}
	s.To = r.other(m, s)
	if ours, theirs := s.Sides["kthwd"], s.Sides[s.To]; ours != nil && theirs != nil && theirs.Median > 0 && m != metricOthers {
		ratio := report.Round3(ours.Median / theirs.Median)
		s.Ratio = &ratio
		s.Pairs = report.Pairs(r.samples[m]["kthwd"], r.samples[m][s.To])
	}
	s.Met = m.met(s)
	return s
}

// other returns the side that kthwd is compared with.
func (r *results) other(m *metric, s summary) string {
	nginx, haproxy := s.Sides["nginx"], s.Sides["haproxy"]
	switch {
	case m.reach.kind == ofNginx || haproxy == nil:
		return "nginx"
	case nginx == nil || m.higher == (haproxy.Median > nginx.Median):
		return "haproxy"
	default:
		return "nginx"
	}
}

func (m *metric) met(s summary) string {
	ours := s.Sides["kthwd"]
	if m.reach.kind == forInformation || ours == nil {
		return ""
	}
	ok := false
	switch {
	case m.reach.kind == atMost:
		ok = ours.Median <= m.reach.value
	case s.Ratio == nil:
		return "?"
	case m.higher:
		ok = *s.Ratio >= m.reach.value
	default:
		ok = *s.Ratio <= m.reach.value
	}
	if ok {
		return "yes"
	}
	return "no"
}

func cores() int { return runtime.NumCPU() }

// report prints the table and the JSON line, unchanged on standard output, so that
// scripts can read them.
func (b *bench) report(t *testing.T) {
	t.Helper()
	names := sideNames(b.sides)
	fmt.Println()
	b.results.table(os.Stdout, names)
	fmt.Printf("\nmedian (min–max) of %d; ratio: kthwd to the better of nginx and HAProxy, of the medians (of the pairs)\n", b.rounds)
	if b.rate > 0 {
		fmt.Printf("latency at %.0f requests/s\n", b.rate)
	}
	all := map[string]summary{}
	for m := range b.results.samples {
		all[m.key] = b.results.summary(m)
	}
	line, err := json.Marshal(struct {
		Bench    string             `json:"bench"`
		Versions map[string]string  `json:"versions"`
		Cores    int                `json:"cores"`
		User     int                `json:"user"`
		Rounds   int                `json:"rounds"`
		Clients  int                `json:"clients"`
		Idle     int                `json:"idle"`
		Phase    string             `json:"phase"`
		Rate     float64            `json:"rate,omitempty"`
		Args     []string           `json:"kthwd_args,omitempty"`
		Metrics  map[string]summary `json:"metrics"`
	}{
		Bench: "kthwd-lb", Versions: b.results.versions, Cores: cores(), User: lbtest.Nobody, Rounds: b.rounds,
		Clients: b.clients, Idle: b.idle, Phase: b.time.String(), Rate: b.rate,
		Args: b.kthwdArgs, Metrics: all,
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n%s\n\n", line)
}

func sideNames(sides []*lbtest.Balancer) []string {
	var names []string
	for _, s := range sides {
		names = append(names, s.Name)
	}
	return names
}

func (r *results) table(out io.Writer, sides []string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "what\t%s\tratio\treach\tmet?\n", strings.Join(sides, "\t"))
	for _, m := range metrics {
		if r.samples[m] == nil {
			continue
		}
		s := r.summary(m)
		fmt.Fprint(w, m.what)
		for _, side := range sides {
			fmt.Fprintf(w, "\t%s", s.Sides[side].Text(m.unit))
		}
		fmt.Fprintf(w, "\t%s\t%s\t%s\n", report.RatioText(s.Ratio, s.Pairs, m.unit), s.Reach, s.Met)
	}
	w.Flush()
}
