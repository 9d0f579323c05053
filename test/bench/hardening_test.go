package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"text/tabwriter"

	"kthwd/test/kthwtest"
	"kthwd/test/report"
)

// variants are kthwd without the hardening that flags can take away, as it is installed, and
// with the profile cis. What no flag takes away, such as the admission of controllers only to
// etcd and the second file of the audit log, is in all three.
var variants = []struct {
	name string
	args []string
}{
	{"soft", []string{
		"--kube-apiserver-arg=enable-admission-plugins=NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota",
		"--kube-apiserver-arg=admission-control-config-file-", "--kube-apiserver-arg=anonymous-auth=true", "--kube-apiserver-arg=tls-cipher-suites-",
		"--kube-apiserver-arg=service-account-max-token-expiration-", "--kube-apiserver-arg=service-account-extend-token-expiration-",
		"--kube-controller-manager-arg=tls-cipher-suites-", "--kube-controller-manager-arg=profiling-",
		"--kube-scheduler-arg=tls-cipher-suites-", "--kube-scheduler-arg=profiling-", "--etcd-arg=cipher-suites-",
	}},
	{"default", nil},
	{"cis", []string{"--profile=cis"}},
}

// hardeningRows are what is compared, and whether more is better.
var hardeningRows = []struct {
	m    *metric
	more bool
}{{metricReady, false}, {metricFirstPod, false}, {metricRestart, false}, {metricCreate, true}, {metricGet, true}, {metricList, true}, {metricDelete, true}}

// cost is the share of start and throughput that the hardening may take.
const cost = 0.02

// TestHardening compares kthwd with its own hardening taken away: make bench-hardening. As in
// TestBench, a target that is missed is reported and fails nothing.
func TestHardening(t *testing.T) {
	if os.Getenv("KTHWD_BENCH_HARDENING") == "" {
		t.Skip("a benchmark of many minutes: make bench-hardening, or KTHWD_BENCH_HARDENING=1")
	}
	debug.SetGCPercent(400) // the clients share the cores with what they measure
	s := readSettings(t)
	sides := make([]*bench, len(variants))
	for i, v := range variants {
		sides[i] = &bench{settings: s, address: hostAddress(), results: newResults(), programs: programs{kthwd: kthwtest.Binary(t)}}
		sides[i].kthwdArgs = v.args
	}
	for round := range max(s.rounds["start"], 1) {
		for turn := range variants {
			i := (round + turn) % len(variants) // none is always the first
			t.Run(fmt.Sprintf("%d-%s", round+1, variants[i].name), func(t *testing.T) {
				sides[i].awaitQuiet(t)
				p := sides[i].newPlane(t, kthwd, filepath.Join(s.dir, fmt.Sprintf("%d-%s", round+1, variants[i].name)))
				measureStart(t, sides[i], p, round)
				measureThroughput(t, sides[i], p, round)
				p.stop(t)
			})
			if t.Failed() {
				return
			}
		}
	}
	writeHardening(t, sides)
}

// writeHardening prints a table of ratios to the first variant, and one line of JSON.
func writeHardening(t *testing.T, sides []*bench) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t%s\t%s\t%s\ttarget\n", variants[0].name, variants[1].name, variants[2].name)
	line := map[string]any{"bench": "kthwd-hardening", "rounds": sides[0].rounds["start"]}
	for _, row := range hardeningRows {
		off := sides[0].results.of(row.m)
		fmt.Fprintf(w, "%s\t%.3g %s", row.m.what, report.Median(valuesOf(off)), row.m.unit)
		worst := 1.0
		for i := 1; i < len(sides); i++ {
			ratio := report.Median(report.Pairs(sides[i].results.of(row.m), off))
			fmt.Fprintf(w, "\t%.3f ×", ratio)
			line[row.m.key+"_"+variants[i].name] = report.Round3(ratio)
			if !row.more {
				ratio = 1 / ratio
			}
			worst = min(worst, ratio)
		}
		met := "met"
		if worst < 1-cost {
			met = "missed"
		}
		fmt.Fprintf(w, "\t%s: no worse than %g ×\n", met, 1-cost)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s%s\n", text.String(), data)
}

// of are kthwd's samples of a metric.
func (r *results) of(m *metric) []report.Sample {
	if both := r.samples[m]; both != nil {
		return both[kthwd]
	}
	return nil
}

func valuesOf(samples []report.Sample) (values []float64) {
	for _, s := range samples {
		values = append(values, s.Value)
	}
	return values
}
