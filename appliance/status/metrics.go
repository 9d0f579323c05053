package status

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kthwd/appliance/supervise"
)

// ownSeries are kthwd's own. The Go and process collectors cover all programs
// that are in it, since they are one process; where there are any, with all that
// Kubernetes shows of the runtime.
func ownSeries(c ServerConfig) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	runtime := collectors.NewGoCollector()
	if len(c.Programs) > 0 {
		runtime = collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsAll))
	}
	r.MustRegister(reportCollector(c.Report), runtime, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	r.MustRegister(c.Collectors...)
	return r
}

var (
	buildDesc  = prometheus.NewDesc("kthwd_build_info", "1, with the versions of what is in the binary.", []string{"version", "kubernetes", "etcd", "go"}, nil)
	readyDesc  = prometheus.NewDesc("kthwd_ready", "1 when every component is ready or standby.", nil, nil)
	stateDesc  = prometheus.NewDesc("kthwd_component_state", "1 for the state that the component is in.", []string{"component", "state"}, nil)
	termsDesc  = prometheus.NewDesc("kthwd_component_restarts_total", "Terms of the component that ended in a failure and were begun again in process.", []string{"component"}, nil)
	startDesc  = prometheus.NewDesc("kthwd_startup_seconds", "Time from the start of the process to the component's first ready.", []string{"component"}, nil)
	votersDesc = prometheus.NewDesc("kthwd_etcd_members", "Voting members of the etcd cluster.", nil, nil)
	quorumDesc = prometheus.NewDesc("kthwd_etcd_quorum", "1 while this member knows a leader.", nil, nil)
)

// reportCollector makes series of the report when Prometheus asks.
type reportCollector func() Report

var states = []supervise.State{supervise.Waiting, supervise.Starting, supervise.Ready, supervise.Standby, supervise.Stopping, supervise.Stopped, supervise.Failed}

// Describe implements prometheus.Collector.
func (c reportCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildDesc, readyDesc, stateDesc, termsDesc, startDesc, votersDesc, quorumDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c reportCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	r := c()
	gauge(buildDesc, 1, r.Version, r.Kubernetes, r.Etcd, runtime.Version())
	gauge(readyDesc, number(r.Ready))
	for _, s := range r.Components {
		for _, state := range states {
			gauge(stateDesc, number(s.State == state), s.Name, string(state))
		}
		ch <- prometheus.MustNewConstMetric(termsDesc, prometheus.CounterValue, float64(s.Restarts), s.Name)
		if s.ReadyAt > 0 {
			gauge(startDesc, s.ReadyAt.Seconds(), s.Name)
		}
	}
	if q := r.Quorum; q != nil {
		gauge(votersDesc, float64(q.Members))
		gauge(quorumDesc, number(q.Leader != ""))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
