package status

import (
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// ownSeries gathers kthwd's own series. The Go and process collectors cover all
// programs, because these share the process. With programs, the Go collector has all
// the runtime metrics that Kubernetes exposes.
func ownSeries(c ServerConfig, report func(time.Time) Report) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	golang := collectors.NewGoCollector()
	if len(c.Programs) > 0 {
		golang = collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsAll))
	}
	r.MustRegister(reportCollector(func() Report { return report(time.Now()) }), golang, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.MustRegister(c.Collectors...)
	return r
}

// reportDescs describes all series that come from a Report.
var reportDescs []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("kthwd_"+name, help, labels, nil)
	reportDescs = append(reportDescs, d)
	return d
}

var (
	buildDesc    = desc("build_info", "1, with the versions of the software in the binary.", "version", "kubernetes", "etcd", "go")
	readyDesc    = desc("ready", "1 when every component is ready or standby.")
	healthDesc   = desc("health", "1 for the health that kthwd status reports for the process.", "health")
	findingsDesc = desc("findings", "Findings that kthwd status shows, by kind and by the health that each alone would give the process.", "kind", "health")
	stateDesc    = desc("component_state", "1 for the state that the component is in.", "component", "state")
	sinceDesc    = desc("component_state_since_timestamp_seconds", "When the component entered that state.", "component")
	restartsDesc = desc("component_restarts_total", "Terms of the component that ended in a failure and were started again in process.", "component", "reason")
	startDesc    = desc("startup_seconds", "Time from the start of the process to the component's first ready.", "component")
	phaseDesc    = desc("startup_phase_seconds", "Time from the start of the component to its first ready.", "component")

	leaderDesc = desc("leader", "1 while this controller holds the lease and the component acts.", "component")
	leadsDesc  = desc("leader_terms_total", "Times that this process has become the leader.", "component")
	leakedDesc = desc("component_leaked_terms_total", "Terms of the component that ended but could not be stopped; a few within an hour end the process.", "component")

	certDesc = desc("certificate_expiry_timestamp_seconds", "When a certificate in use expires; 0 for a file that cannot be read.", "file", "subject", "use")

	votersDesc   = desc("etcd_members", "Voting members of the etcd cluster.")
	learnersDesc = desc("etcd_learners", "Members of the etcd cluster that do not vote yet.")
	activeDesc   = desc("etcd_members_active", "Voting members that take part in the quorum as the leader sees it; without a leader those that this one is connected to, itself included.")
	unheardDesc  = desc("etcd_members_unheard", "Members that take part in the quorum, although this one cannot connect to them.")
	neededDesc   = desc("etcd_members_needed", "Voting members that must agree to a write.")
	quorumDesc   = desc("etcd_quorum", "1 while this member has a leader that answers it.")
	leadDesc     = desc("etcd_leader", "1 while this member leads.")
	termDesc     = desc("etcd_raft_term", "Raft term, which increases with each election.")
	sizeDesc     = desc("etcd_db_size_bytes", "Size of the database's file.")
	inUseDesc    = desc("etcd_db_in_use_bytes", "Part of the database's file that holds data; the rest is free for new data, or for a defragmentation to return.")
	quotaDesc    = desc("etcd_db_quota_bytes", "Size at which etcd accepts no more writes.")
	fsyncDesc    = desc("etcd_fsync_p99_seconds", "99th percentile of the duration of fsync of the write-ahead log in the last minutes; 0 when there was none, and in the first minute.")
	busyDesc     = desc("etcd_fsync_busy_ratio", "Share of the last minutes in which etcd waited for fsync of the write-ahead log.")
	slowDesc     = desc("etcd_disk_slow", "1 when fsync takes too long for a control plane.")
	alarmDesc    = desc("etcd_alarms", "Active alarms of etcd.")
)

// restartReasons lists the reasons that each component can have, so that the series
// exist before the first restart.
var restartReasons = map[string][]string{
	program.APIServer:         {"no_quorum"},
	program.ControllerManager: {"exit", "failed", "fatal", "lease_lost", "panic"},
	program.Scheduler:         {"exit", "failed", "fatal", "lease_lost", "panic"},
}

// reportCollector turns the report into series when Prometheus scrapes.
type reportCollector func() Report

var states = []supervise.State{supervise.Waiting, supervise.Starting, supervise.Ready, supervise.Standby, supervise.Stopping, supervise.Stopped, supervise.Failed}

// Describe implements prometheus.Collector.
func (c reportCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range reportDescs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c reportCollector) Collect(ch chan<- prometheus.Metric) {
	out := series{ch}
	r := c()
	out.gauge(buildDesc, 1, r.Version, r.Kubernetes, r.Etcd, runtime.Version())
	out.gauge(readyDesc, number(r.Ready))
	health := r.Health
	for _, h := range []Health{Healthy, Degraded, Down} {
		out.gauge(healthDesc, number(h == health), string(h))
	}
	out.findings(r.Findings)
	for _, s := range r.Components {
		out.component(s, r.Restarts[s.Name])
	}
	for _, l := range r.Leases {
		out.gauge(leaderDesc, number(l.Leading), l.Name)
		out.counter(leadsDesc, float64(l.Terms), l.Name)
		out.counter(leakedDesc, float64(l.Leaked), l.Name)
	}
	out.certificates(r.Certificates)
	if q := r.Quorum; q != nil {
		out.gauge(votersDesc, float64(q.Members))
		out.gauge(activeDesc, float64(q.Active))
		out.gauge(neededDesc, float64(q.Needed))
		out.gauge(quorumDesc, number(!r.lacksQuorum()))
	}
	if r.Member != nil {
		out.member(*r.Member)
	}
}

// series sends metrics, whose labels may be any text, to a channel.
type series struct{ ch chan<- prometheus.Metric }

func (s series) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- metric(d, prometheus.GaugeValue, v, labels)
}

func (s series) counter(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- metric(d, prometheus.CounterValue, v, labels)
}

// metric never panics: labels from files and other members need not be valid UTF-8.
func metric(d *prometheus.Desc, t prometheus.ValueType, v float64, labels []string) prometheus.Metric {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(text.Line(l), "?")
	}
	m, err := prometheus.NewConstMetric(d, t, v, labels...)
	if err != nil {
		return prometheus.NewInvalidMetric(d, err)
	}
	return m
}

// findings counts the findings. Those without a kind have series at all times, so that
// the family is always there.
func (s series) findings(all []Finding) {
	type key struct {
		kind   string
		health Health
	}
	count := map[key]int{}
	for _, h := range []Health{Healthy, Degraded, Down} {
		count[key{"", h}] = 0
	}
	for _, f := range all {
		count[key{f.Kind, f.Health}]++
	}
	for k, n := range count {
		s.gauge(findingsDesc, float64(n), k.kind, string(k.health))
	}
}

func (s series) component(c supervise.Status, restarts map[string]int) {
	for _, state := range states {
		s.gauge(stateDesc, number(c.State == state), c.Name, string(state))
	}
	if !c.Since.IsZero() {
		s.gauge(sinceDesc, float64(c.Since.UnixNano())/1e9, c.Name)
	}
	reasons := slices.Clone(restartReasons[c.Name])
	for reason := range restarts {
		if !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	for _, reason := range reasons {
		s.counter(restartsDesc, float64(restarts[reason]), c.Name, reason)
	}
	if c.ReadyAt > 0 {
		s.gauge(startDesc, c.ReadyAt.Seconds(), c.Name)
		s.gauge(phaseDesc, c.Took.Seconds(), c.Name)
	}
}

// certificates adds each certificate once, however many programs use it.
func (s series) certificates(all []Certificate) {
	type key struct{ file, subject, use string }
	seen := map[key]bool{}
	for _, c := range all {
		k := key{text.Line(c.File), text.Line(c.Subject), c.Use}
		if seen[k] {
			continue
		}
		seen[k] = true
		at := 0.0
		if c.Problem == "" {
			at = float64(c.NotAfter.Unix())
		}
		s.gauge(certDesc, at, c.File, c.Subject, c.Use)
	}
}

func (s series) member(m Member) {
	learners, unheard := 0, 0
	for _, p := range m.Members {
		if p.Learner {
			learners++
		}
		if p.Active && !p.Unheard.IsZero() {
			unheard++
		}
	}
	s.gauge(learnersDesc, float64(learners))
	s.gauge(unheardDesc, float64(unheard))
	s.gauge(leadDesc, number(m.Leader))
	s.gauge(termDesc, float64(m.Term))
	s.gauge(sizeDesc, float64(m.Size))
	s.gauge(inUseDesc, float64(m.InUse))
	s.gauge(quotaDesc, float64(m.Quota))
	s.gauge(fsyncDesc, m.Fsync.P99.Seconds())
	s.gauge(busyDesc, m.Fsync.busy())
	s.gauge(slowDesc, number(m.Fsync.slow()))
	s.gauge(alarmDesc, float64(len(m.Alarms)))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
