package benchlb

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"kthwd/test/lbtest"
)

// metric is a row of the table.
type metric struct {
	key    string // in the JSON line
	what   string
	unit   string
	higher bool // more is better
	reach  target
}

// target is what the issue asks for; the zero value asks for nothing.
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
	metricOthers          = &metric{"others", "machine used by other processes meanwhile", "%", false, target{}}

	metrics = []*metric{
		metricRequests, metricRequestCPU, metricConnections, metricConnectionCPU, metricBulk, metricBulkCPU,
		metricIdleMemory, metricIdleTotal, metricIdleDescriptors, metricIdlePipes, metricIdleCPU,
		metricP50, metricP99, metricDirectP50, metricDirectP99, metricLatencyCPU, metricOthers,
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

// sample is one number.
type sample struct {
	round int
	value float64
}

// results are the numbers of a run.
type results struct {
	samples  map[*metric]map[string][]sample // by side
	versions map[string]string
}

func newResults() *results {
	return &results{samples: map[*metric]map[string][]sample{}, versions: map[string]string{"go": runtime.Version()}}
}

func (r *results) add(m *metric, side string, round int, value float64) {
	if r.samples[m] == nil {
		r.samples[m] = map[string][]sample{}
	}
	r.samples[m][side] = append(r.samples[m][side], sample{round, value})
}

// first is the first number of a metric.
func (r *results) first(m *metric, side string) (float64, error) {
	if samples := r.samples[m][side]; len(samples) > 0 {
		return samples[0].value, nil
	}
	return 0, errMissing
}

// summary is what is told of one metric.
type summary struct {
	Unit  string             `json:"unit,omitempty"`
	Sides map[string]*spread `json:"sides"`
	Ratio *float64           `json:"ratio,omitempty"` // kthwd's median to the other's
	Pairs []float64          `json:"pairs,omitempty"` // the same of each round
	To    string             `json:"to,omitempty"`    // what the ratio is to: the better of nginx and haproxy, or nginx
	Reach string             `json:"reach,omitempty"`
	Met   string             `json:"met,omitempty"`
}

// spread is one side of a metric.
type spread struct {
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	All    []float64 `json:"all"`
}

func (r *results) summary(m *metric) summary {
	s := summary{Unit: m.unit, Sides: map[string]*spread{}, Reach: m.reach.String()}
	for side, samples := range r.samples[m] {
		s.Sides[side] = spreadOf(samples)
	}
	s.To = r.other(m, s)
	if ours, theirs := s.Sides["kthwd"], s.Sides[s.To]; ours != nil && theirs != nil && theirs.Median > 0 && m != metricOthers {
		ratio := round3(ours.Median / theirs.Median)
		s.Ratio = &ratio
		s.Pairs = r.pairs(m, s.To)
	}
	s.Met = m.met(s)
	return s
}

// other is the side that kthwd is compared with.
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

func (r *results) pairs(m *metric, other string) []float64 {
	var pairs []float64
	for _, a := range r.samples[m]["kthwd"] {
		for _, b := range r.samples[m][other] {
			if a.round == b.round && b.value > 0 {
				pairs = append(pairs, round3(a.value/b.value))
			}
		}
	}
	return pairs
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

func spreadOf(samples []sample) *spread {
	s := &spread{}
	for _, v := range samples {
		s.All = append(s.All, round3(v.value))
	}
	s.Median, s.Min, s.Max = median(s.All), slices.Min(s.All), slices.Max(s.All)
	return s
}

// median is the mean of the two in the middle when there is no middle one.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return round3((sorted[(n-1)/2] + sorted[n/2]) / 2)
}

func round3(v float64) float64 { return math.Round(v*1000) / 1000 }

func cores() int { return runtime.NumCPU() }

// report prints the table and the JSON line, on standard output and as they
// are, so that scripts can read them.
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
			fmt.Fprintf(w, "\t%s", s.Sides[side].text(m.unit))
		}
		fmt.Fprintf(w, "\t%s\t%s\t%s\n", s.ratioText(), s.Reach, s.Met)
	}
	w.Flush()
}

func (s *spread) text(unit string) string {
	if s == nil {
		return "—"
	}
	text := strings.TrimSpace(figure(s.Median) + " " + unit)
	if len(s.All) > 1 {
		text += " (" + figure(s.Min) + "–" + figure(s.Max) + ")"
	}
	return text
}

func (s summary) ratioText() string {
	if s.Ratio == nil || s.Unit == "%" {
		return "—"
	}
	text := fmt.Sprintf("%.2f", *s.Ratio)
	if len(s.Pairs) > 1 {
		text += fmt.Sprintf(" (%.2f–%.2f)", slices.Min(s.Pairs), slices.Max(s.Pairs))
	}
	return text
}

// figure has about three digits.
func figure(v float64) string {
	switch {
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
