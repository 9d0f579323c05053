package rbacseed

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	appliedDesc  = prometheus.NewDesc("kthwd_rbac_seed_applied_timestamp_seconds", "When the API server's rights on kubelets were applied; 0 until then.", nil, nil)
	failuresDesc = prometheus.NewDesc("kthwd_rbac_seed_failures_total", "Failed attempts to apply these rights.", nil, nil)
	resultDesc   = prometheus.NewDesc("kthwd_rbac_seed_result", "1 for the action taken on each object.", []string{"object", "result"}, nil)
)

// Collector returns the kthwd_rbac_seed_* series.
func (s *Seed) Collector() prometheus.Collector { return collector{s} }

type collector struct{ s *Seed }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{appliedDesc, failuresDesc, resultDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	c.s.mu.Lock()
	at, failures, r := c.s.appliedAt, c.s.failures, c.s.result
	c.s.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(failures))
	if at.IsZero() {
		ch <- prometheus.MustNewConstMetric(appliedDesc, prometheus.GaugeValue, 0)
		return
	}
	ch <- prometheus.MustNewConstMetric(appliedDesc, prometheus.GaugeValue, float64(at.UnixNano())/1e9)
	ch <- prometheus.MustNewConstMetric(resultDesc, prometheus.GaugeValue, 1, "clusterrole", string(r.Role))
	ch <- prometheus.MustNewConstMetric(resultDesc, prometheus.GaugeValue, 1, "clusterrolebinding", string(r.Binding))
}

// note stores the result of an attempt for Collector.
func (s *Seed) note(r Result, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failures++
		return
	}
	s.appliedAt, s.result = time.Now(), r
}
