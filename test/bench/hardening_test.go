package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"kthwd/test/kthwtest"
	"kthwd/test/report"
)

// soft takes away the hardening that flags can take away. What no flag takes away, such as the
// admission of controllers only to etcd and the second file of the audit log, stays.
var soft = []string{
	"--kube-apiserver-arg=enable-admission-plugins=NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota",
	"--kube-apiserver-arg=admission-control-config-file-", "--kube-apiserver-arg=anonymous-auth=true", "--kube-apiserver-arg=tls-cipher-suites-",
	"--kube-apiserver-arg=service-account-max-token-expiration-", "--kube-apiserver-arg=service-account-extend-token-expiration-",
	"--kube-controller-manager-arg=tls-cipher-suites-", "--kube-controller-manager-arg=profiling-",
	"--kube-scheduler-arg=tls-cipher-suites-", "--kube-scheduler-arg=profiling-", "--etcd-arg=cipher-suites-",
}

// softTLS leaves of the profile cis the guide's way to etcd alone, TLS: no flag gives that to the
// guide's profile, whose API server uses the socket of the member beside it.
var softTLS = append([]string{"--profile=cis",
	"--kube-apiserver-arg=audit-log-maxbackup=3", "--kube-apiserver-arg=runtime-config=api/all=true",
	"--kube-controller-manager-arg=bind-address=0.0.0.0", "--kube-scheduler-arg=bind-address=0.0.0.0"}, soft...)

// variants are kthwd without its hardening, as it is installed, without its hardening once more
// (which shows how far equals differ here), with the guide's way to etcd but no hardening, and with
// the profile cis. That profile has the guide's way to etcd, TLS, because
// CIS 1.2.23 and 1.2.26 ask for its flags: what TLS costs is no cost of the hardening beside the
// guide, only beside the socket.
var variants = []struct {
	name    string
	args    []string
	besides int  // the variant that it is compared with
	judged  bool // by the target
}{
	{name: "soft", args: soft},
	{name: "default", besides: 0, judged: true},
	{name: "soft again", args: soft, besides: 0},
	{name: "soft, TLS to etcd", args: softTLS, besides: 0},
	{name: "cis", args: []string{"--profile=cis"}, besides: 3, judged: true},
}

// Processor time of kthwd for one request. The rate depends more on the others that use the machine.
var cpuOf = map[*metric]*metric{
	metricCreate: {"create_cpu", "  its processor time", "ms", target{}},
	metricGet:    {"get_cpu", "  its processor time", "ms", target{}},
	metricList:   {"list_cpu", "  its processor time", "ms", target{}},
	metricDelete: {"delete_cpu", "  its processor time", "ms", target{}},
}

// hardeningRows are what is compared, and whether more is better.
var hardeningRows = []struct {
	m            *metric
	more, judged bool
}{
	{metricReady, false, true}, {metricFirstPod, false, true}, {metricRestart, false, true},
	{metricCreate, true, true}, {cpuOf[metricCreate], false, false},
	{metricGet, true, true}, {cpuOf[metricGet], false, false},
	{metricList, true, true}, {cpuOf[metricList], false, false},
	{metricDelete, true, true}, {cpuOf[metricDelete], false, false},
}

// cost is the share of start and throughput that the hardening may take.
const cost = 0.02

// TestHardening compares kthwd with its own hardening taken away: make bench-hardening. As in
// TestBench, a target that is missed is reported and fails nothing.
//
// They take turns in short pieces, for another use of the machine comes and goes in
// seconds: what lasts longer than a round is in each side of a pair.
func TestHardening(t *testing.T) {
	if os.Getenv("KTHWD_BENCH_HARDENING") == "" {
		t.Skip("a benchmark of many minutes: make bench-hardening, or KTHWD_BENCH_HARDENING=1")
	}
	debug.SetGCPercent(400) // the clients share the cores with what they measure
	s := readSettings(t)
	s.phaseTime = duration(t, "KTHWD_BENCH_PHASE", time.Second)
	chooseVariants(t)
	sides := make([]*bench, len(variants))
	for i, v := range variants {
		sides[i] = &bench{settings: s, address: hostAddress(), results: newResults(), programs: programs{kthwd: kthwtest.Installed(t, kthwtest.Binary(t))}}
		sides[i].kthwdArgs = v.args
	}
	starts, bursts := max(number(t, "KTHWD_BENCH_ROUNDS", 15), 1), max(number(t, "KTHWD_BENCH_ROUNDS", 40), 1)
	if s.rounds["start"] == 0 {
		starts = 0
	}
	if s.rounds["throughput"] == 0 {
		bursts = 0
	}
	sides[0].awaitQuiet(t)
	for round := range starts {
		for _, i := range turns(round) {
			t.Run(fmt.Sprintf("start-%d-%s", round+1, variants[i].name), func(t *testing.T) {
				p := newVariant(t, sides, i, fmt.Sprintf("start-%d", round+1))
				measureStart(t, sides[i], p, round)
				p.stop(t)
			})
			if t.Failed() {
				return
			}
		}
	}
	if bursts > 0 {
		measureBursts(t, sides, bursts)
	}
	writeHardening(t, sides, starts, bursts)
}

// chooseVariants leaves the first ones, up to the one that KTHWD_BENCH_UPTO names.
func chooseVariants(t *testing.T) {
	upto := os.Getenv("KTHWD_BENCH_UPTO")
	if upto == "" {
		return
	}
	for i, v := range variants {
		if v.name == upto && i > 0 {
			variants = variants[:i+1]
			return
		}
	}
	t.Fatalf("KTHWD_BENCH_UPTO=%s: want default, or a later one", upto)
}

// turns are the variants in the order of a round: none is always the first.
func turns(round int) (order []int) {
	for turn := range variants {
		order = append(order, (round+turn)%len(variants))
	}
	return order
}

// newVariant is a control plane of the variant with that index.
func newVariant(t *testing.T, sides []*bench, i int, dir string) *plane {
	t.Helper()
	return sides[i].newPlane(t, kthwd, filepath.Join(sides[i].dir, dir, strconv.Itoa(i)))
}

// sameProcesses is how many bursts the same processes serve. Two processes of the same variant
// differ by some per cent for as long as they live: only other processes show the variant's share.
const sameProcesses = 5

// measureBursts measures throughput while all variants run: those whose turn it is not are idle.
func measureBursts(t *testing.T, sides []*bench, rounds int) {
	for begin := 0; begin < rounds; begin += sameProcesses {
		t.Run(fmt.Sprintf("bursts-%d", begin+1), func(t *testing.T) {
			measureSome(t, sides, begin, min(begin+sameProcesses, rounds))
		})
		if t.Failed() {
			return
		}
	}
}

// measureSome measures the rounds from begin until before end with processes of their own.
func measureSome(t *testing.T, sides []*bench, begin, end int) {
	planes, loads := make([]*plane, len(sides)), make([]*load, len(sides))
	for _, i := range turns(begin / sameProcesses) {
		planes[i] = newVariant(t, sides, i, fmt.Sprintf("bursts-%d", begin+1))
		planes[i].start(t)
		planes[i].awaitReady(t)
		loads[i] = newLoad(t, planes[i])
		defer planes[i].stop(t)
	}
	for round := begin; round < end; round++ {
		for part := range loads[0].parts() {
			for _, i := range turns(round + part) {
				now, begun, used := loads[i].parts()[part], time.Now(), planes[i].allTicks()
				rate := sides[i].phase(t, loads[i].clients, now.do)
				sides[i].results.add(now.metric, kthwd, round, rate)
				requests := rate * time.Since(begun).Seconds()
				sides[i].results.add(cpuOf[now.metric], kthwd, round, (planes[i].allTicks()-used)*10/requests)
			}
		}
	}
}

// writeHardening prints a table, where a ratio is the median of the rounds, with the half of them
// around it in brackets, and one line of JSON.
func writeHardening(t *testing.T, sides []*bench, starts, bursts int) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t%s", variants[0].name)
	for _, v := range variants[1:] {
		fmt.Fprintf(w, "\t%s : %s", v.name, variants[v.besides].name)
	}
	last := len(variants) - 1
	indirect := variants[last].besides > 0 // then it is compared with the first one, too
	if indirect {
		fmt.Fprintf(w, "\t%s : %s", variants[last].name, variants[0].name)
	}
	fmt.Fprintf(w, "\ttarget: no worse than %g ×\n", 1-cost)
	line := map[string]any{"bench": "kthwd-hardening", "starts": starts, "bursts": bursts}
	for _, row := range hardeningRows {
		of := func(i int) []report.Sample { return sides[i].results.of(row.m) }
		if len(of(0)) == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%.3g %s", row.m.what, report.Median(valuesOf(of(0))), row.m.unit)
		worst := 1.0
		compared := func(i, besides int) {
			pairs := slices.Sorted(slices.Values(report.Pairs(of(i), of(besides))))
			ratio := report.Median(pairs)
			fmt.Fprintf(w, "\t%.3f × (%.2f–%.2f)", ratio, pairs[len(pairs)/4], pairs[len(pairs)*3/4])
			line[fmt.Sprintf("%s_%s:%s", row.m.key, variants[i].name, variants[besides].name)] = report.Round3(ratio)
			if !row.more {
				ratio = 1 / ratio
			}
			if variants[i].judged && besides == variants[i].besides {
				worst = min(worst, ratio)
			}
		}
		for i, v := range variants[1:] {
			compared(i+1, v.besides)
		}
		if indirect {
			compared(last, 0)
		}
		switch {
		case !row.judged:
			fmt.Fprintln(w, "\t")
		case worst < 1-cost:
			fmt.Fprintln(w, "\tmissed")
		default:
			fmt.Fprintln(w, "\tmet")
		}
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
