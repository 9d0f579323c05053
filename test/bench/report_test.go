package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"kthwd/test/report"
)

// metric is a row of the table.
type metric struct {
	key   string // in the JSON line
	what  string
	unit  string
	reach target
}

// target is what the issue asks for; the zero value asks for nothing.
type target struct {
	kind  targetKind
	value float64
}

type targetKind int

const (
	forInformation targetKind = iota
	ratioAtMost
	ratioAtLeast
	valueAtMost
)

// The targets are those of the project's first issue, "Numbers".
var (
	metricReady          = &metric{"ready", "exec → /readyz ok, empty data directory", "s", target{ratioAtMost, 0.45}}
	metricServiceAccount = &metric{"service_account", "exec → ServiceAccount default/default exists", "s", target{ratioAtMost, 0.22}}
	metricFirstPod       = &metric{"first_pod", "exec → first pod bound to a (fake) node", "s", target{ratioAtMost, 0.25}}
	metricRestart        = &metric{"restart", "restart on existing data → /readyz", "s", target{ratioAtMost, 0.5}}
	metricStartCPU       = &metric{"start_cpu", "  CPU time used until then", "s", target{}}
	metricPods           = &metric{"pods", "pods bound, 1000 on 100 fake nodes", "/s", target{ratioAtLeast, 7}}
	metricPodsBinding    = &metric{"pods_binding", "  the same, from the first binding on", "/s", target{}}
	metricRSS            = &metric{"rss", "idle RSS, all processes", "MiB", target{ratioAtMost, 0.55}}
	metricPSS            = &metric{"pss", "  of it PSS", "MiB", target{}}
	metricAnon           = &metric{"anon", "  of it anonymous", "MiB", target{}}
	metricLoadedRSS      = &metric{"rss_loaded", "  RSS right after throughput and pods", "MiB", target{}}
	metricCPU            = &metric{"cpu", "idle CPU, ticks of 10 ms per 60 s", "", target{ratioAtMost, 0.5}}
	metricStop           = &metric{"stop", "SIGTERM → exit, 50 watching (separate: apiserver only)", "s", target{valueAtMost, 3}}
	metricCreate         = &metric{"create", "ConfigMap create, 32 clients", "/s", target{ratioAtLeast, 1.1}}
	metricGet            = &metric{"get", "ConfigMap get", "/s", target{ratioAtLeast, 1.1}}
	metricList           = &metric{"list", "ConfigMap list of 1000", "/s", target{ratioAtLeast, 1.1}}
	metricDelete         = &metric{"delete", "ConfigMap delete", "/s", target{ratioAtLeast, 1.1}}
	metricOthers         = &metric{"others", "machine used by other processes meanwhile", "%", target{}}

	metrics = []*metric{
		metricReady, metricServiceAccount, metricFirstPod, metricStartCPU, metricRestart, metricPods, metricPodsBinding,
		metricRSS, metricPSS, metricAnon, metricLoadedRSS, metricCPU, metricStop,
		metricCreate, metricGet, metricList, metricDelete, metricOthers,
	}
)

func (t target) String() string {
	switch t.kind {
	case ratioAtMost:
		return fmt.Sprintf("≤ %g ×", t.value)
	case ratioAtLeast:
		return fmt.Sprintf("≥ %g ×", t.value)
	case valueAtMost:
		return fmt.Sprintf("≤ %g", t.value)
	default:
		return ""
	}
}

// met judges kthwd's median and the ratio of the medians.
func (t target) met(value, ratio float64) string {
	ok := false
	switch t.kind {
	case ratioAtMost:
		ok = ratio <= t.value
	case ratioAtLeast:
		ok = ratio >= t.value
	case valueAtMost:
		ok = value <= t.value
	default:
		return ""
	}
	switch {
	case math.IsNaN(value) || t.kind != valueAtMost && math.IsNaN(ratio):
		return "?"
	case ok:
		return "yes"
	default:
		return "no"
	}
}

// results are the numbers of a run.
type results struct {
	samples  map[*metric]*[2][]report.Sample
	restarts [2]int
	beside   string // the heading of the side that kthwd is compared with
}

func newResults() *results {
	return &results{samples: map[*metric]*[2][]report.Sample{}, beside: separate.String()}
}

// clone is for a turn that may have to be forgotten.
func (r *results) clone() *results {
	c := &results{samples: map[*metric]*[2][]report.Sample{}, restarts: r.restarts, beside: r.beside}
	for m, sides := range r.samples {
		c.samples[m] = &[2][]report.Sample{slices.Clone(sides[separate]), slices.Clone(sides[kthwd])}
	}
	return c
}

func (r *results) add(m *metric, s side, round int, value float64) {
	if r.samples[m] == nil {
		r.samples[m] = &[2][]report.Sample{}
	}
	r.samples[m][s] = append(r.samples[m][s], report.Sample{Round: round, Value: value})
}

// summary is what is told of one metric. JSON has no NaN: what is missing is
// left out.
type summary struct {
	Unit     string         `json:"unit,omitempty"`
	Separate *report.Spread `json:"separate,omitempty"`
	Kthwd    *report.Spread `json:"kthwd,omitempty"`
	Ratio    *float64       `json:"ratio,omitempty"` // of the medians
	Pairs    []float64      `json:"pairs,omitempty"` // of each round
	Reach    string         `json:"reach,omitempty"`
	Met      string         `json:"met,omitempty"`
}

func (r *results) summary(m *metric) summary {
	reach := m.reach
	if r.beside != separate.String() {
		reach = target{} // it is for the separate programs
	}
	s := summary{Unit: m.unit, Reach: reach.String()}
	values := r.samples[m]
	s.Separate, s.Kthwd = report.SpreadOf(values[separate]), report.SpreadOf(values[kthwd])
	value, ratio := math.NaN(), math.NaN()
	if s.Kthwd != nil {
		value = s.Kthwd.Median
	}
	if s.Kthwd != nil && s.Separate != nil && s.Separate.Median != 0 {
		ratio = value / s.Separate.Median
		rounded := report.Round3(ratio)
		s.Ratio = &rounded
	}
	s.Pairs = report.Pairs(values[kthwd], values[separate])
	s.Met = reach.met(value, ratio)
	return s
}

// report prints the table and the JSON line, on standard output and as they
// are, so that scripts can read them.
func (b *bench) report(t *testing.T) {
	t.Helper()
	fmt.Println()
	b.results.table(os.Stdout, metrics)
	fmt.Printf("\nmedian (min–max); ratio of the medians (of the pairs); restarts by the units: %s %d, kthwd %d\n\n",
		b.results.beside, b.results.restarts[separate], b.results.restarts[kthwd])
	line, err := json.Marshal(struct {
		Bench    string             `json:"bench"`
		Versions map[string]string  `json:"versions"`
		Cores    int                `json:"cores"`
		Address  string             `json:"address"`
		Rounds   map[string]int     `json:"rounds"`
		Idle     string             `json:"idle"`
		Phase    string             `json:"phase"`
		Args     []string           `json:"kthwd_args,omitempty"`
		Restarts map[string]int     `json:"restarts"`
		Metrics  map[string]summary `json:"metrics"`
	}{
		Bench: map[bool]string{false: "kthwd", true: "kthwd-previous"}[b.previous != ""], Versions: b.versions(t), Cores: runtime.NumCPU(), Address: b.address,
		Rounds: b.rounds, Idle: b.idle.String(), Phase: b.phaseTime.String(), Args: b.kthwdArgs,
		Restarts: map[string]int{"separate": b.results.restarts[separate], "kthwd": b.results.restarts[kthwd]},
		Metrics:  b.results.summaries(),
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s\n\n", line)
}

func (r *results) summaries() map[string]summary {
	all := map[string]summary{}
	for m := range r.samples {
		all[m.key] = r.summary(m)
	}
	return all
}

func (r *results) table(out io.Writer, metrics []*metric) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "what\t%s\tkthwd\tratio\treach\tmet?\n", r.beside)
	for _, m := range metrics {
		if r.samples[m] == nil {
			continue
		}
		s := r.summary(m)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", m.what, s.Separate.Text(m.unit), s.Kthwd.Text(m.unit), report.RatioText(s.Ratio, s.Pairs, m.unit), s.Reach, s.Met)
	}
	w.Flush()
}

// versions asks the programs.
func (b *bench) versions(t *testing.T) map[string]string {
	t.Helper()
	versions := map[string]string{"go": runtime.Version()}
	commands := map[string][]string{
		"kthwd":          {b.programs.kthwd, "version"},
		"etcd":           {b.programs.etcd, "--version"},
		"kube-apiserver": {b.programs.apiserver, "--version"},
	}
	if b.previous != "" {
		commands = map[string][]string{"kthwd": {b.programs.kthwd, "version"}, "previous": {b.previous, "version"}}
	}
	for name, argv := range commands {
		out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).Output()
		if err != nil {
			t.Errorf("%s: %v", strings.Join(argv, " "), err)
		}
		versions[name], _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	}
	return versions
}
