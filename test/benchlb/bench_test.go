package benchlb

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kthwd/test/harness"
	"kthwd/test/lbtest"
	"kthwd/test/report"
)

func TestMain(m *testing.M) {
	lbtest.Main(m, map[string]lbtest.Helper{"backend": runBackend, "load": runLoad, "readyz": runReadyz, "tcpproxy": runTCPProxy})
}

var partNames = []string{"requests", "connections", "bulk", "idle", "latency", "mixed", "burst", "checks"}

// settings holds the environment, read once.
type settings struct {
	parts     []string
	rounds    int
	time      time.Duration
	clients   int
	idle      int
	quiet     time.Duration
	redo      int
	rate      float64 // of latency; 0: half of what the slowest balancer manages
	peers     []string
	kthwdArgs []string
	dir       string
}

func readSettings(t *testing.T) settings {
	s := settings{
		parts:     list("KTHWD_BENCH_ONLY", partNames),
		rounds:    number(t, "KTHWD_BENCH_ROUNDS", 5),
		clients:   number(t, "KTHWD_BENCH_CLIENTS", 64),
		idle:      number(t, "KTHWD_BENCH_IDLE", 10000),
		rate:      float64(number(t, "KTHWD_BENCH_RATE", 0)),
		redo:      number(t, "KTHWD_BENCH_REDO", 0),
		time:      duration(t, "KTHWD_BENCH_PHASE", 3*time.Second),
		quiet:     duration(t, "KTHWD_BENCH_QUIET", 2*time.Second),
		peers:     list("KTHWD_BENCH_BALANCERS", []string{"kthwd", "nginx", "haproxy", "tcpproxy"}),
		kthwdArgs: strings.Fields(os.Getenv("KTHWD_BENCH_KTHWD_ARGS")),
	}
	for _, p := range s.parts {
		if !slices.Contains(partNames, p) {
			t.Fatalf("KTHWD_BENCH_ONLY: no part %q; there are %s", p, strings.Join(partNames, ","))
		}
	}
	return s
}

func list(name string, otherwise []string) []string {
	if text := os.Getenv(name); text != "" {
		return strings.Split(text, ",")
	}
	return otherwise
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

// TestBench is the benchmark: see the package comment.
func TestBench(t *testing.T) {
	if os.Getenv("KTHWD_BENCH_LB") == "" {
		t.Skip("a benchmark of several minutes: make bench-lb, or KTHWD_BENCH_LB=1")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces of its own and for running the balancers as another user")
	}
	if !lbtest.OwnMachine(t) {
		return
	}
	b := &bench{settings: readSettings(t), results: newResults()}
	b.limit = lbtest.RaiseDescriptorLimit(t, 1<<16)
	b.findSides(t)
	b.dir = lbtest.PublicDir(t)
	for _, s := range b.sides {
		b.results.versions[s.Name] = s.Version()
	}
	for round := range b.rounds {
		for _, part := range b.parts {
			b.measure(t, part, round)
			if t.Failed() {
				return
			}
		}
	}
	b.report(t)
}

// bench is one run.
type bench struct {
	settings
	sides   []*lbtest.Balancer
	results *results
	limit   int // descriptors a process may have
}

func (b *bench) findSides(t *testing.T) {
	t.Helper()
	for _, s := range []*lbtest.Balancer{lbtest.Kthwd, lbtest.Nginx, lbtest.Haproxy, plain} {
		if !slices.Contains(b.peers, s.Name) {
			continue
		}
		if lacks := s.Missing(); lacks != "" {
			t.Logf("%s is left out: %s", s.Name, lacks)
			continue
		}
		b.sides = append(b.sides, s)
	}
	if len(b.sides) == 0 {
		t.Fatal("no balancer to measure")
	}
}

// measure runs one part with each side; each round starts with another side.
func (b *bench) measure(t *testing.T, part string, round int) {
	if part == "latency" && b.rate == 0 {
		b.findRate(t)
	}
	if part == "burst" {
		b.bursts(t, round)
		return
	}
	for i := range b.sides {
		if t.Failed() {
			return
		}
		s := b.sides[(i+round)%len(b.sides)]
		if part == "checks" && s != lbtest.Kthwd {
			continue // the others have no such checks by default
		}
		b.turn(t, fmt.Sprintf("%s-%d-%s", part, round+1, s.Name), s, func(t *testing.T, r *rig) {
			map[string]func(*testing.T){
				"requests": r.measureRequests, "connections": r.measureConnections,
				"bulk": r.measureBulk, "idle": r.measureIdle, "latency": r.measureLatency, "mixed": r.measureMixed, "checks": r.measureChecks,
			}[part](t)
		}, round)
	}
}

// noisyShare is the share of the machine whose use by others spoils a turn.
const noisyShare = 15

// turn measures one side. It repeats that while others use too much of the machine and
// KTHWD_BENCH_REDO allows it; the least disturbed attempt counts.
func (b *bench) turn(t *testing.T, name string, s *lbtest.Balancer, measure func(*testing.T, *rig), round int) {
	var best *rig
	for try := range b.redo + 1 {
		if try > 0 {
			name += "-again"
		}
		t.Run(name, func(t *testing.T) {
			r := b.newRig(t, s)
			measure(t, r)
			if best == nil || r.others() < best.others() {
				best = r
			}
		})
		if t.Failed() {
			return
		}
		if best.others() < noisyShare {
			break
		}
	}
	for _, sample := range best.samples {
		b.results.add(sample.metric, s.Name, round, sample.value)
	}
}

const listenAt = "127.0.0.1:7443"

var backends = []string{"127.0.0.11:6443", "127.0.0.12:6443", "127.0.0.13:6443"}

// rig is a balancer between load and backends, in a separate network.
type rig struct {
	bench    *bench
	side     *lbtest.Balancer
	listen   string       // address of balancer
	setup    lbtest.Setup // of balancer
	ns       *lbtest.Namespace
	backend  *lbtest.Process
	balancer *lbtest.Process
	samples  []measuredSample
	beside   []int // load generators and balancers that run beside what is measured
}

type measuredSample struct {
	metric *metric
	value  float64
}

func (r *rig) add(m *metric, value float64) { r.samples = append(r.samples, measuredSample{m, value}) }

// others is the largest share of the machine, in per cent, used by other processes during
// a measurement.
func (r *rig) others() float64 {
	largest := 0.0
	for _, s := range r.samples {
		if s.metric == metricOthers {
			largest = max(largest, s.value)
		}
	}
	return largest
}

func (b *bench) newRig(t *testing.T, s *lbtest.Balancer) *rig {
	t.Helper()
	b.awaitQuiet()
	r := &rig{bench: b, side: s, ns: lbtest.NewNamespace(t), listen: listenAt}
	r.ns.Sysctl(t, "net/ipv4/ip_local_port_range", "10000 65000")
	r.backend = lbtest.StartHelper(t, r.ns, "backend", backends...)
	if line := r.backend.Line(t); line != "ready" {
		t.Fatalf("backend said %q", line)
	}
	r.start(t)
	return r
}

// start starts the balancer, and waits until it balances.
func (r *rig) start(t *testing.T) {
	t.Helper()
	dir := filepath.Join(r.bench.dir, r.side.Name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, lbtest.Nobody, lbtest.Nobody); err != nil {
		t.Fatal(err)
	}
	r.setup = lbtest.Setup{Dir: dir, Namespace: r.ns, Nobody: true, Listen: r.listen, Backends: backends}
	if r.side == lbtest.Kthwd {
		r.setup.Args = r.bench.kthwdArgs
	}
	r.balancer = r.side.Start(t, r.setup)
	r.awaitReady(t)
}

// quietShare is the most that others may use of the machine in a quiet moment.
const quietShare = 0.10

// awaitQuiet waits, for a limited time, until the machine is quiet.
func (b *bench) awaitQuiet() {
	const moment = 200 * time.Millisecond
	for begin := time.Now(); time.Since(begin) < b.quiet; {
		used := lbtest.MachineCPU()
		<-time.After(moment)
		if (lbtest.MachineCPU() - used).Seconds() < quietShare*moment.Seconds()*float64(cores()) {
			return
		}
	}
}

// awaitReady makes exchanges until one works, and some more for good measure.
func (r *rig) awaitReady(t *testing.T) {
	t.Helper()
	harness.WaitFor(t, r.side.Name+" balances", 10*time.Second, func() (err error) {
		if !r.balancer.Running() {
			t.Fatalf("%s has ended", r.side.Name)
		}
		r.ns.Do(func() { err = exchange(r.listen) })
		return err
	})
	for range 2 * len(backends) {
		r.ns.Do(func() {
			if err := exchange(r.listen); err != nil {
				t.Error(err)
			}
		})
	}
}

func exchange(address string) error {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	request := [requestSize]byte{kindExchange}
	if _, err := conn.Write(request[:]); err != nil {
		return err
	}
	for got := 0; got < responseSize; {
		n, err := conn.Read(make([]byte, responseSize))
		if got += n; err != nil {
			return err
		}
	}
	return nil
}

// measured is an outcome and the CPU time used meanwhile.
type measured struct {
	outcome
	cpu    time.Duration // of the balancer
	others float64       // share of the machine used by other processes
}

// run gives the load generator an order and waits for its outcome. It calls while, which
// may be nil, when the measurement has started.
func (r *rig) run(t *testing.T, o order, while func(load *lbtest.Process)) measured {
	t.Helper()
	if o.Address == "" {
		o.Address = r.listen
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	load := lbtest.StartHelper(t, r.ns, "load", string(text))
	defer load.End()
	if line := load.Line(t); line != "begin" {
		t.Fatalf("load generator said %q", line)
	}
	begin := r.usage(load)
	if while != nil {
		while(load)
	}
	line, is := strings.CutPrefix(load.Line(t), "end ")
	if !is {
		t.Fatalf("load generator said %q", line)
	}
	m := measured{}
	end := r.usage(load)
	m.cpu = end.balancer - begin.balancer
	m.others = begin.others(end)
	if err := json.Unmarshal([]byte(line), &m.outcome); err != nil {
		t.Fatal(err)
	}
	r.add(metricOthers, m.others)
	if m.Failed > 0 {
		t.Errorf("%d connections failed: %s", m.Failed, m.Reason)
	}
	return m
}

// usage holds the CPU times at one moment.
type usage struct {
	at                      time.Time
	machine, ours, balancer time.Duration
}

func (r *rig) usage(load *lbtest.Process) usage {
	return usageOf(r.balancer, append([]int{r.backend.PID, load.PID}, r.beside...)...)
}

// usageOf returns the CPU times of a balancer and of processes that belong to the
// measurement.
func usageOf(balancer *lbtest.Process, ours ...int) usage {
	u := usage{at: time.Now(), machine: lbtest.MachineCPU(), balancer: lbtest.CPU(balancer.Tree()...)}
	u.ours = u.balancer + lbtest.CPU(append(ours, os.Getpid())...)
	return u
}

// others is the share of the machine, in per cent, that other processes have used from u to
// end.
func (u usage) others(end usage) float64 {
	used := (end.machine - u.machine) - (end.ours - u.ours)
	return max(0, 100*float64(used)/float64(end.at.Sub(u.at))/float64(cores()))
}

const warm = 500 * time.Millisecond

func (r *rig) measureRequests(t *testing.T) {
	m := r.run(t, order{Kind: "requests", Clients: r.bench.clients, Warm: warm, Time: r.bench.time}, nil)
	r.add(metricRequests, m.Done/m.Seconds)
	r.add(metricRequestCPU, float64(m.cpu.Microseconds())/m.Done)
}

func (r *rig) measureConnections(t *testing.T) {
	m := r.run(t, order{Kind: "connections", Clients: r.bench.clients, Warm: warm, Time: r.bench.time}, nil)
	r.add(metricConnections, m.Done/m.Seconds)
	r.add(metricConnectionCPU, float64(m.cpu.Microseconds())/m.Done)
}

func (r *rig) measureBulk(t *testing.T) {
	m := r.run(t, order{Kind: "bulk", Clients: 1, Warm: warm, Time: r.bench.time}, nil)
	r.add(metricBulk, m.Done*8/1e9/m.Seconds)
	r.add(metricBulkCPU, m.cpu.Seconds()*1e9/m.Done)
}

// settle is the time from the last exchange to reading the memory.
const settle = 3 * time.Second

func (r *rig) measureIdle(t *testing.T) {
	before := lbtest.AnonymousMemory(r.balancer.Tree()...)
	fdsBefore, pipesBefore := lbtest.Descriptors(r.balancer.Tree()...)
	n := r.idleConnections()
	if n < r.bench.idle {
		t.Logf("%d descriptors are allowed: %d idle connections instead of %d", r.bench.limit, n, r.bench.idle)
	}
	r.run(t, order{Kind: "idle", Clients: n}, func(load *lbtest.Process) {
		<-time.After(settle)
		after := lbtest.AnonymousMemory(r.balancer.Tree()...)
		fds, pipes := lbtest.Descriptors(r.balancer.Tree()...)
		cpu := lbtest.CPU(r.balancer.Tree()...)
		<-time.After(2 * time.Second)
		cpu = lbtest.CPU(r.balancer.Tree()...) - cpu
		r.add(metricIdleMemory, (after-before)/1024/float64(n))
		r.add(metricIdleTotal, after/(1<<20))
		r.add(metricIdleDescriptors, float64(fds-fdsBefore)/float64(n))
		r.add(metricIdlePipes, float64(pipes-pipesBefore)/float64(n))
		r.add(metricIdleCPU, cpu.Seconds()/2*100)
		load.Stdin.Close()
	})
}

// idleConnections returns how many connections the descriptor limit allows.
func (r *rig) idleConnections() int {
	each := 2
	if r.side == plain {
		each = 6
	}
	return min(r.bench.idle, (r.bench.limit-600)/each)
}

// The number and the length of the turns of latency through the balancer and past it.
const (
	latencySlices = 16
	latencySlice  = 250 * time.Millisecond
)

// measureLatency sends the same rate, half of the slowest balancer's, through the
// balancer and past it, in turns. A turn's 99th percentile depends on which threads the
// kernel has placed on which processor for that quarter of a second, and differs by a
// factor of five between turns of the same balancer on an otherwise idle machine. The
// median of the turns is a client's experience; the lowest was tried, and is luck.
func (r *rig) measureLatency(t *testing.T) {
	var direct, through struct{ p50, p99 []float64 }
	var cpu time.Duration
	done, wanted := 0.0, 0.0
	o := order{Kind: "rate", Clients: r.bench.clients, Rate: r.bench.rate, Warm: warm / 5, Time: latencySlice}
	for range latencySlices {
		o.Address = backends[0]
		m := r.run(t, o, nil)
		direct.p50, direct.p99 = append(direct.p50, m.P50), append(direct.p99, m.P99)
		o.Address = listenAt
		m = r.run(t, o, nil)
		through.p50, through.p99 = append(through.p50, m.P50), append(through.p99, m.P99)
		cpu += m.cpu
		done += m.Done
		wanted += r.bench.rate * m.Seconds
	}
	if done < 0.98*wanted {
		t.Logf("only %.0f of %.0f requests were answered in time", done, wanted)
	}
	r.add(metricP50, report.Median(through.p50)-report.Median(direct.p50))
	r.add(metricP99, report.Median(through.p99)-report.Median(direct.p99))
	r.add(metricDirectP50, report.Median(direct.p50))
	r.add(metricDirectP99, report.Median(direct.p99))
	r.add(metricLatencyCPU, float64(cpu.Microseconds())/done)
}

// mixedRate is the rate of small requests beside bulk streams: what some hundred kubelets
// send, and far below what any balancer manages.
const mixedRate = 1000

// pacedRate is what two bulk streams carry together beside small requests, in bytes per second: 4
// Gbit/s, less than half of what any balancer manages.
const pacedRate = 500e6

// measureMixed sends small requests at a fixed rate while two streams move as much as they
// can, as when clients list everything beside others that renew their leases; and while they move
// as much through one balancer as through another.
func (r *rig) measureMixed(t *testing.T) {
	r.measureBeside(t, order{Kind: "bulk"}, metricMixedP50, metricMixedP99, metricMixedBulk)
	r.measureBeside(t, order{Kind: "paced", Rate: pacedRate}, metricPacedP50, metricPacedP99, metricPacedBulk)
}

// measureBeside sends small requests beside two streams. The 99th percentile is the median of
// turns of a second, as for latency, and is not compared with one past the balancer: there the
// streams would be others.
func (r *rig) measureBeside(t *testing.T, streams order, metricP50, metricP99, metricBulk *metric) {
	const turns, turn = 6, time.Second
	var p50, p99 []float64
	streams.Clients, streams.Warm, streams.Time = 2, warm, turns*(turn+time.Second)
	bulk := r.run(t, streams, func(load *lbtest.Process) {
		r.beside = []int{load.PID}
		for range turns {
			m := r.run(t, order{Kind: "rate", Clients: r.bench.clients, Rate: mixedRate, Warm: warm / 5, Time: turn}, nil)
			p50, p99 = append(p50, m.P50), append(p99, m.P99)
		}
		r.beside = nil
	})
	r.add(metricP50, report.Median(p50))
	r.add(metricP99, report.Median(p99))
	r.add(metricBulk, bulk.Done*8/1e9/bulk.Seconds)
}

// findRate derives the rate from the earlier measurement of requests, or else from a short
// one.
func (b *bench) findRate(t *testing.T) {
	slowest := math.Inf(1)
	for _, s := range b.sides {
		value, err := b.results.first(metricRequests, s.Name)
		if err != nil {
			t.Run("rate-"+s.Name, func(t *testing.T) {
				m := b.newRig(t, s).run(t, order{Kind: "requests", Clients: b.clients, Warm: warm, Time: time.Second}, nil)
				value = m.Done / m.Seconds
			})
		}
		slowest = min(slowest, value)
	}
	b.rate = math.Round(slowest / 2)
}

var errMissing = errors.New("not measured")
