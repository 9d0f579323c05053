package health

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	requestsDesc = prometheus.NewDesc("kthwd_health_requests_total", "Requests answered by the health bridge.", []string{"code"}, nil)
	probesDesc   = prometheus.NewDesc("kthwd_health_probes_total", "Probes of the API server by the health bridge.", []string{"result"}, nil)
	probeDesc    = prometheus.NewDesc("kthwd_health_last_probe_duration_seconds", "Duration of the last probe.", nil, nil)
	cutDesc      = prometheus.NewDesc("kthwd_health_connections_cut_total", "Connections to the health bridge closed to make room for others.", nil, nil)
)

// Collector returns the kthwd_health_* series.
func (b *Bridge) Collector() prometheus.Collector { return collector{b} }

type collector struct{ b *Bridge }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, probesDesc, probeDesc, cutDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.b.stats()
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for _, code := range []int{http.StatusOK, http.StatusServiceUnavailable} { // present before the first request
		counter(requestsDesc, s.Requests[code], strconv.Itoa(code))
		delete(s.Requests, code)
	}
	for code, n := range s.Requests {
		counter(requestsDesc, n, strconv.Itoa(code))
	}
	counter(probesDesc, s.Probes-s.ProbeFailures, "ok")
	counter(probesDesc, s.ProbeFailures, "failed")
	ch <- prometheus.MustNewConstMetric(probeDesc, prometheus.GaugeValue, s.LastProbe.Seconds())
	counter(cutDesc, s.Cut)
}
