package lb

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/lb/check"
)

// metrics is the collector of a server: at each scrape it reads the server's counters.
type metrics struct {
	s    *Server
	all  *backendTimes
	gone *tally // of removed backends, so that no sum ever falls; guarded by Server.mu
}

func newMetrics(s *Server) *metrics {
	return &metrics{s: s, all: newBackendTimes(allBackends, nil), gone: newTally()}
}

const (
	// allBackends is the label of series that are the sum of all backends.
	allBackends = "all"
	// mostDetailed is the number of backends up to which each has all series of its own.
	mostDetailed = 10
)

// detailed reports whether each backend has all series of its own: some 110 of them.
func (c Config) detailed(backends int) bool {
	return c.Metrics == MetricsEach || c.Metrics == MetricsAuto && backends <= mostDetailed
}

// Collector returns the kthwd_lb_* series. No label contains a client's address.
func (s *Server) Collector() prometheus.Collector { return s.metrics }

var (
	connectBuckets  = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
	durationBuckets = []float64{.01, .1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600}
)

// histogram returns a histogram with the given buckets and, for a Prometheus that
// requests it, a native one. The native one resolves a time to within 10 %, where the
// buckets are a factor of two or ten apart; it costs 40 ns and no allocation for each
// connection and check.
func histogram(name, help string, buckets []float64, labels prometheus.Labels) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: help, Buckets: buckets, ConstLabels: labels,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	})
}

// newDurations returns the histogram of how long a listener's connections last.
func newDurations(address string) prometheus.Histogram {
	return histogram("kthwd_lb_connection_duration_seconds", "Time from accept to end of a connection.", durationBuckets, prometheus.Labels{"listener": address})
}

// backendTimes are the histograms of one backend, or of all.
type backendTimes struct {
	all     *backendTimes // counts everything, too; nil for the one of all
	connect prometheus.Histogram
	phases  map[string]prometheus.Histogram
	expiry  atomic.Int64 // of the backend's certificate, in Unix seconds; 0 when unknown
}

func newBackendTimes(name string, all *backendTimes) *backendTimes {
	t := &backendTimes{
		all:     all,
		connect: histogram("kthwd_lb_backend_connect_duration_seconds", "Time from the first SYN to an answered connection.", connectBuckets, prometheus.Labels{"backend": name}),
		phases:  map[string]prometheus.Histogram{},
	}
	for _, phase := range []string{"connect", "tls", "http"} {
		t.phases[phase] = histogram("kthwd_lb_health_check_duration_seconds", "Duration of a phase of a health check; most use the connection of an earlier one.", connectBuckets, prometheus.Labels{"backend": name, "phase": phase})
	}
	return t
}

func (t *backendTimes) connected(took time.Duration) {
	t.connect.Observe(took.Seconds())
	t.all.connect.Observe(took.Seconds())
}

func (t *backendTimes) check(r check.Result) {
	for phase, took := range map[string]time.Duration{"connect": r.Connect, "tls": r.TLS, "http": r.HTTP} {
		if took > 0 {
			t.phases[phase].Observe(took.Seconds())
			t.all.phases[phase].Observe(took.Seconds())
		}
	}
	if !r.CertExpiry.IsZero() {
		t.expiry.Store(r.CertExpiry.Unix())
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kthwd_lb_"+name, help, labels, nil)
}

var (
	acceptedDesc     = desc("connections_accepted_total", "Connections accepted.", "listener")
	activeDesc       = desc("connections_active", "Open connections.", "listener")
	rejectedDesc     = desc("connections_rejected_total", "Connections closed without a backend.", "listener", "reason")
	acceptErrorsDesc = desc("accept_errors_total", "Pauses in accepting connections; meanwhile clients wait in the kernel's queue.", "listener", "reason")
	receivedDesc     = desc("received_bytes_total", "Bytes from clients.", "listener", "backend")
	sentDesc         = desc("sent_bytes_total", "Bytes to clients.", "listener", "backend")

	backendActiveDesc = desc("backend_connections_active", "Open connections to the backend.", "backend")
	backendTotalDesc  = desc("backend_connections_total", "Connections answered by the backend.", "backend")
	failuresDesc      = desc("backend_connect_failures_total", "Failed attempts to connect.", "backend", "reason")
	retriesDesc       = desc("backend_connect_retries_total", "Attempts to connect to this backend after another one failed or was slow.", "backend")
	hedgedDesc        = desc("backend_hedged_connects_total", "Attempts to connect made because another backend was slow.", "backend", "result")
	closedDesc        = desc("backend_connections_closed_total", "Ended connections.", "backend", "reason")

	infoDesc        = desc("backend_info", "1 for each backend whose address comes from a configured name, with that name.", "backend", "name")
	namesDesc       = desc("name_addresses", "Addresses in use of a configured name.", "name")
	nameProblemDesc = desc("name_problem", "1 while the last look-up of a configured name failed or found an address that is not used.", "name")
	stateDesc       = desc("backend_state", "1 for the present state of the backend.", "backend", "state")
	upDesc          = desc("backend_up", "1 while the backend is preferred for new connections: it is ready, or held down while none is ready.", "backend")
	checksDesc      = desc("health_checks_total", "Health checks.", "backend", "result")
	transitionsDesc = desc("backend_state_transitions_total", "Changes of the state found by health checks.", "backend", "to")
	transitionAt    = desc("backend_last_transition_timestamp_seconds", "When the state last changed.", "backend")
	countDesc       = desc("backends", "Backends in each state.", "state")
	failOpenDesc    = desc("fail_open", "1 while no backend passes its checks, so that any backend is used.")
	inUseDesc       = desc("loops_in_use", "Loops that accept connections, one more when these are busy, at most one per processor.")
	loopBusyDesc    = desc("loop_busy_seconds_total", "Time in which a loop was busy.", "loop")
	heldDesc        = desc("connections_held", "Clients waiting for a backend.")
	expiryDesc      = desc("backend_certificate_expiry_timestamp_seconds", "When the backend's certificate expires.", "backend")

	reloadsDesc    = desc("config_reloads_total", "Reloads of the configuration.", "result")
	reloadAtDesc   = desc("config_last_reload_success_timestamp_seconds", "When a configuration was last applied.")
	hashDesc       = desc("config_hash", "A number that changes with the configuration.")
	handoverDesc   = desc("handover_connections_total", "Connections handed over in upgrades of the binary.", "result")
	handoverTime   = desc("handover_duration_seconds", "The longest pause of a connection in the last upgrade.")
	accessDropDesc = desc("access_log_dropped_total", "Lines not written to the access log.")
	limitHitsDesc  = desc("limit_hits_total", "Times that a limit of this load balancer or its machine was reached.", "limit")
	limitDesc      = desc("connections_limit", "The most connections at one time.")
)

// Describe implements prometheus.Collector. It sends nothing: the collector is
// unchecked, because its series depend on the configuration.
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.s
	s.mu.Lock()
	defer s.mu.Unlock()
	out := collector{ch}
	detailed := s.cfg.Load().detailed(len(s.backends))
	sum := newTally()
	sum.merge(m.gone)
	states := map[string]int{}
	for _, b := range s.backends {
		state := b.state(s.draining[b] != nil)
		states[state]++
		out.backend(b, state)
		if detailed {
			own := newTally()
			own.add(b)
			out.tally(own, b.name)
			out.times(b.times)
			out.states(b, state)
		} else {
			sum.add(b)
		}
	}
	if !detailed {
		out.tally(sum, allBackends)
		out.times(m.all)
	}
	for _, l := range s.accounts {
		out.listener(l)
		if detailed {
			out.traffic(l, s.backends)
		} else {
			out.counter(receivedDesc, sum.traffic[l.index][0], l.address, allBackends)
			out.counter(sentDesc, sum.traffic[l.index][1], l.address, allBackends)
		}
	}
	for _, f := range s.followed() {
		n := f.Status()
		if len(n.Servers) == 0 && n.Answered {
			states[stateUnresolved]++
		}
		out.gauge(namesDesc, float64(len(n.Servers)), f.place)
		out.gauge(nameProblemDesc, number(n.Problem != ""), f.place)
	}
	for _, state := range append(allStates, stateUnresolved) {
		out.gauge(countDesc, float64(states[state]), state)
	}
	out.gauge(failOpenDesc, number(s.failsOpen()))
	out.gauge(heldDesc, float64(s.heldNow.Load()))
	out.gauge(inUseDesc, float64(s.inUse.Load()))
	for i, l := range s.loops {
		out.seconds(loopBusyDesc, time.Duration(l.busy.Load()), strconv.Itoa(i))
	}
	out.gauge(limitDesc, float64(s.limit.Load()))
	for k := range limitKinds {
		out.counter(limitHitsDesc, s.limits.all[k].hits.Load(), limitNames[k])
	}
	out.counter(reloadsDesc, s.reloads[0], "error")
	out.counter(reloadsDesc, s.reloads[1], "success")
	out.gauge(reloadAtDesc, float64(s.lastReload.UnixNano())/1e9)
	out.gauge(hashDesc, s.cfg.Load().hash())
	out.counter(accessDropDesc, s.accessDropped.Load())
	for result, n := range s.handover.counts() {
		out.counter(handoverDesc, n, result)
	}
	out.gauge(handoverTime, s.handover.pause().Seconds())
}

var allStates = []string{string(check.Unknown), string(check.Ready), stateSlowStart, stateHeld, string(check.NotReady), string(check.Dead), stateDraining}

type collector struct{ ch chan<- prometheus.Metric }

func (c collector) gauge(d *prometheus.Desc, v float64, labels ...string) {
	c.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (c collector) counter(d *prometheus.Desc, v uint64, labels ...string) {
	c.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (c collector) seconds(d *prometheus.Desc, v time.Duration, labels ...string) {
	c.ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v.Seconds(), labels...)
}

func (c collector) listener(l *account) {
	c.counter(acceptedDesc, l.accepted.Load(), l.address)
	c.gauge(activeDesc, float64(l.active.Load()), l.address)
	l.durations.Collect(c.ch)
	for i, name := range rejectNames {
		c.counter(rejectedDesc, l.rejected[i].Load(), l.address, name)
	}
	for i, name := range acceptErrorNames {
		c.counter(acceptErrorsDesc, l.errors[i].Load(), l.address, name)
	}
}

func (c collector) traffic(l *account, backends []*Backend) {
	sums := map[string][2]uint64{} // a backend that was removed and added again has one series
	for _, b := range backends {
		received, sent := b.bytesMoved(l.index)
		sums[b.name] = [2]uint64{sums[b.name][0] + received, sums[b.name][1] + sent}
	}
	for name, sum := range sums {
		c.counter(receivedDesc, sum[0], l.address, name)
		c.counter(sentDesc, sum[1], l.address, name)
	}
}

// backend sends the series that every backend has, however many there are.
func (c collector) backend(b *Backend, state string) {
	c.gauge(backendActiveDesc, float64(b.active.Load()), b.name)
	c.counter(backendTotalDesc, b.total.Load(), b.name)
	c.gauge(upDesc, number(state != stateDraining && b.preferred()), b.name)
	if b.is.name != "" {
		c.gauge(infoDesc, 1, b.name, b.is.name)
	}
	if at := b.times.expiry.Load(); at != 0 {
		c.gauge(expiryDesc, float64(at), b.name)
	}
}

func (c collector) states(b *Backend, state string) {
	for _, name := range allStates {
		c.gauge(stateDesc, number(name == state), b.name, name)
	}
	if st := b.status.Load(); st != nil {
		c.gauge(transitionAt, float64(st.Since.UnixNano())/1e9, b.name)
	}
}

func (c collector) times(t *backendTimes) {
	t.connect.Collect(c.ch)
	for _, h := range t.phases {
		h.Collect(c.ch)
	}
}

// tally is the counters of one backend, or their sum.
type tally struct {
	retries, hedgeWon, hedgeLost uint64
	failures                     [len(failureNames)]uint64
	closed                       [endFirstByte]uint64
	transitions                  map[check.State]uint64
	checks                       map[check.Kind]uint64
	traffic                      map[int][2]uint64 // received and sent, by listener
}

func newTally() *tally {
	return &tally{transitions: map[check.State]uint64{}, checks: map[check.Kind]uint64{}, traffic: map[int][2]uint64{}}
}

// add adds the counters of b.
func (t *tally) add(b *Backend) {
	t.retries += b.retries.Load()
	t.hedgeWon += b.hedgeWon.Load()
	t.hedgeLost += b.hedgeLost.Load()
	for i := range t.failures {
		t.failures[i] += b.failures[i].Load()
	}
	for i := range t.closed {
		t.closed[i] += b.closed[i].Load()
	}
	if b.status.Load() != nil {
		n := b.checker.Load().Status().Transitions
		t.transitions[check.Ready] += n.Ready
		t.transitions[check.NotReady] += n.NotReady
		t.transitions[check.Dead] += n.Dead
	}
	b.results.Range(func(kind, n any) bool {
		t.checks[kind.(check.Kind)] += n.(*atomic.Uint64).Load()
		return true
	})
	for i := range *b.traffic.Load() {
		received, sent := b.bytesMoved(i)
		t.traffic[i] = [2]uint64{t.traffic[i][0] + received, t.traffic[i][1] + sent}
	}
}

// merge adds another tally.
func (t *tally) merge(o *tally) {
	t.retries += o.retries
	t.hedgeWon += o.hedgeWon
	t.hedgeLost += o.hedgeLost
	for i := range t.failures {
		t.failures[i] += o.failures[i]
	}
	for i := range t.closed {
		t.closed[i] += o.closed[i]
	}
	for state, n := range o.transitions {
		t.transitions[state] += n
	}
	for kind, n := range o.checks {
		t.checks[kind] += n
	}
	for i, n := range o.traffic {
		t.traffic[i] = [2]uint64{t.traffic[i][0] + n[0], t.traffic[i][1] + n[1]}
	}
}

func (c collector) tally(t *tally, name string) {
	c.counter(retriesDesc, t.retries, name)
	c.counter(hedgedDesc, t.hedgeWon, name, "won")
	c.counter(hedgedDesc, t.hedgeLost, name, "lost")
	for i, reason := range failureNames {
		c.counter(failuresDesc, t.failures[i], name, reason)
	}
	for i, reason := range endNames[:endFirstByte] {
		c.counter(closedDesc, t.closed[i], name, reason)
	}
	for state, n := range t.transitions {
		c.counter(transitionsDesc, n, name, string(state))
	}
	for kind, n := range t.checks {
		c.counter(checksDesc, n, name, string(kind))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// hash returns a hash of the configuration that a float64 holds exactly.
func (c Config) hash() float64 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%+v", c)
	return float64(h.Sum32())
}
