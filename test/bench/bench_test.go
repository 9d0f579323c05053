package bench

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

var partNames = []string{"start", "idle", "throughput", "pods", "stop"}

// settings are the environment, read once.
type settings struct {
	parts     []string
	rounds    map[string]int
	idle      time.Duration
	phaseTime time.Duration
	quiet     time.Duration
	redo      int
	profile   time.Duration
	dir       string
	kthwdArgs []string
	previous  string // a kthwd in place of the separate programs
}

func readSettings(t *testing.T) settings {
	s := settings{
		parts:     partNames,
		rounds:    map[string]int{"start": 5, "idle": 3, "throughput": 3, "pods": 3, "stop": 3},
		idle:      duration(t, "KTHWD_BENCH_IDLE", 60*time.Second),
		phaseTime: duration(t, "KTHWD_BENCH_PHASE", 5*time.Second),
		redo:      number(t, "KTHWD_BENCH_REDO", 0),
		quiet:     duration(t, "KTHWD_BENCH_QUIET", 10*time.Second),
		profile:   duration(t, "KTHWD_BENCH_PROFILE", 0),
		dir:       os.Getenv("KTHWD_BENCH_DIR"),
		kthwdArgs: strings.Fields(os.Getenv("KTHWD_BENCH_KTHWD_ARGS")),
		previous:  os.Getenv("KTHWD_BENCH_PREVIOUS"),
	}
	if only := os.Getenv("KTHWD_BENCH_ONLY"); only != "" {
		s.parts = strings.Split(only, ",")
	}
	for _, p := range s.parts {
		if !slices.Contains(partNames, p) {
			t.Fatalf("KTHWD_BENCH_ONLY: no part %q; there are %s", p, strings.Join(partNames, ","))
		}
	}
	for part, n := range s.rounds {
		s.rounds[part] = number(t, "KTHWD_BENCH_ROUNDS", n)
	}
	maps.DeleteFunc(s.rounds, func(part string, _ int) bool { return !slices.Contains(s.parts, part) })
	if s.dir == "" {
		s.dir = t.TempDir()
	}
	return s
}

func duration(t *testing.T, name string, otherwise time.Duration) time.Duration {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}

func number(t *testing.T, name string, otherwise int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%s: want a number", name, text)
	}
	return n
}

// wants tells whether the part takes place in this round, counted from 0.
func (s settings) wants(part string, round int) bool {
	return round < s.rounds[part]
}

// TestBench is the benchmark: see the package comment.
func TestBench(t *testing.T) {
	if os.Getenv("KTHWD_BENCH") == "" {
		t.Skip("a benchmark of many minutes: make bench, or KTHWD_BENCH=1")
	}
	debug.SetGCPercent(400) // the clients share the cores with what they measure
	b := newBench(t)
	for round := range slices.Max(slices.Collect(maps.Values(b.rounds))) {
		for _, turn := range b.turns(round) {
			for _, s := range []side{separate, kthwd} {
				b.take(t, turn, s, round)
				if t.Failed() {
					return
				}
			}
		}
	}
	b.report(t)
}

// bench is one run.
type bench struct {
	settings
	address  string
	programs programs
	results  *results
}

// newBench is a run with the programs of both sides.
func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		settings: readSettings(t),
		address:  hostAddress(),
		results:  newResults(),
		programs: programs{kthwd: kthwtest.Installed(t, kthwtest.Binary(t))},
	}
	if b.previous != "" {
		b.results.beside, b.previous = "previous", kthwtest.Installed(t, b.previous)
	} else {
		b.programs.etcd = kthwtest.Installed(t, kthwtest.Tool(t, "go.etcd.io/etcd/server/v3"))
		b.programs.apiserver = kthwtest.Installed(t, kthwtest.Tool(t, "k8s.io/kubernetes/cmd/kube-apiserver"))
		b.programs.controllerManager = kthwtest.Installed(t, kthwtest.Tool(t, "k8s.io/kubernetes/cmd/kube-controller-manager"))
		b.programs.scheduler = kthwtest.Installed(t, kthwtest.Tool(t, "k8s.io/kubernetes/cmd/kube-scheduler"))
	}
	return b
}

// turn is what one control plane is used for.
type turn struct {
	name string
	run  func(t *testing.T, b *bench, p *plane, round int)
}

// turns are the parts of a round: start has a control plane to itself, the
// others share one.
func (b *bench) turns(round int) []turn {
	var turns []turn
	if b.wants("start", round) {
		turns = append(turns, turn{"start", measureStart})
	}
	if slices.ContainsFunc(partNames[1:], func(part string) bool { return b.wants(part, round) }) {
		turns = append(turns, turn{"use", measureUse})
	}
	return turns
}

// take runs one turn of one side, again when others used too much of the
// machine and KTHWD_BENCH_REDO allows it.
func (b *bench) take(t *testing.T, turn turn, s side, round int) {
	for try := range b.redo + 1 {
		name := fmt.Sprintf("%s-%d-%v", turn.name, round+1, s)
		if try > 0 {
			name += fmt.Sprintf("-again%d", try)
		}
		earlier := b.results
		b.results = earlier.clone()
		others := b.tryTurn(t, turn, s, round, name)
		if t.Failed() || others < noisyShare {
			return
		}
		if try < b.redo {
			b.results = earlier
		}
	}
}

// tryTurn runs a turn as a subtest, so that its processes end with it, and
// returns the share of the machine that others used.
func (b *bench) tryTurn(t *testing.T, turn turn, s side, round int, name string) (others float64) {
	t.Run(name, func(t *testing.T) {
		b.awaitQuiet(t)
		p := b.newPlane(t, s, filepath.Join(b.dir, name))
		before := since(p)
		turn.run(t, b, p, round)
		others = before.others()
		t.Logf("took %v; restarts by the units: %d; other processes used %.0f %% of the machine",
			time.Since(before.at).Round(time.Second), p.restarts(), others*100)
		b.results.add(metricOthers, s, round, others*100)
		p.stop(t)
	})
	return others
}

// measureUse runs the parts that share a control plane.
func measureUse(t *testing.T, b *bench, p *plane, round int) {
	p.start(t)
	p.awaitReady(t)
	ready := time.Now()
	if b.wants("idle", round) {
		measureIdle(t, b, p, round, ready)
	}
	if b.wants("throughput", round) {
		measureThroughput(t, b, p, round)
	}
	if b.wants("pods", round) {
		measurePods(t, b, p, round)
	}
	if b.wants("throughput", round) && b.wants("pods", round) {
		b.results.add(metricLoadedRSS, p.side, round, p.memory(t).rss)
	}
	b.results.restarts[p.side] += p.restarts() // clients that lose their server in the next part do not count
	if b.wants("stop", round) {
		measureStop(t, b, p, round)
	}
}

// within is a context for one step of a measurement.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
