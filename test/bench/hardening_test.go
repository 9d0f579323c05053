package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

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
//
// The three take turns in short pieces, for another use of the machine comes and goes in
// seconds: what lasts longer than a round is in each side of a pair.
func TestHardening(t *testing.T) {
	if os.Getenv("KTHWD_BENCH_HARDENING") == "" {
		t.Skip("a benchmark of many minutes: make bench-hardening, or KTHWD_BENCH_HARDENING=1")
	}
	debug.SetGCPercent(400) // the clients share the cores with what they measure
	s := readSettings(t)
	s.phaseTime = duration(t, "KTHWD_BENCH_PHASE", time.Second)
	sides := make([]*bench, len(variants))
	for i, v := range variants {
		sides[i] = &bench{settings: s, address: hostAddress(), results: newResults(), programs: programs{kthwd: kthwtest.Binary(t)}}
		sides[i].kthwdArgs = v.args
	}
	starts, bursts := max(number(t, "KTHWD_BENCH_ROUNDS", 15), 1), max(number(t, "KTHWD_BENCH_ROUNDS", 40), 1)
	sides[0].awaitQuiet(t)
	for round := range starts {
		for _, i := range turns(round) {
			t.Run(fmt.Sprintf("start-%d-%s", round+1, variants[i].name), func(t *testing.T) {
				p := sides[i].newPlane(t, kthwd, filepath.Join(s.dir, fmt.Sprintf("%d-%s", round+1, variants[i].name)))
				measureStart(t, sides[i], p, round)
				p.stop(t)
			})
			if t.Failed() {
				return
			}
		}
	}
	measureBursts(t, sides, bursts)
	writeHardening(t, sides, starts, bursts)
}

// turns are the variants in the order of a round: none is always the first.
func turns(round int) (order []int) {
	for turn := range variants {
		order = append(order, (round+turn)%len(variants))
	}
	return order
}

// measureBursts measures throughput while all variants run: those whose turn it is not are idle.
func measureBursts(t *testing.T, sides []*bench, rounds int) {
	loads := make([]*load, len(sides))
	for i, b := range sides {
		p := b.newPlane(t, kthwd, filepath.Join(b.dir, "bursts-"+variants[i].name))
		p.start(t)
		p.awaitReady(t)
		loads[i] = newLoad(t, p)
		defer p.stop(t)
	}
	for round := range rounds {
		for part := range loads[0].parts() {
			for _, i := range turns(round + part) {
				now := loads[i].parts()[part]
				sides[i].results.add(now.metric, kthwd, round, sides[i].phase(t, loads[i].clients, now.do))
			}
		}
	}
}

// writeHardening prints a table of ratios to the first variant, the median of the rounds and the
// half of them around it, and one line of JSON.
func writeHardening(t *testing.T, sides []*bench, starts, bursts int) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t%s\t%s\t%s\ttarget\n", variants[0].name, variants[1].name, variants[2].name)
	line := map[string]any{"bench": "kthwd-hardening", "starts": starts, "bursts": bursts}
	for _, row := range hardeningRows {
		off := sides[0].results.of(row.m)
		fmt.Fprintf(w, "%s\t%.3g %s", row.m.what, report.Median(valuesOf(off)), row.m.unit)
		worst := 1.0
		for i := 1; i < len(sides); i++ {
			pairs := slices.Sorted(slices.Values(report.Pairs(sides[i].results.of(row.m), off)))
			ratio := report.Median(pairs)
			fmt.Fprintf(w, "\t%.3f × (%.3f–%.3f)", ratio, pairs[len(pairs)/4], pairs[len(pairs)*3/4])
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
