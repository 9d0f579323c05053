package stages

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those that every rotation has, with its name as a label. Make them with Kind.Metrics.
type Metrics struct{ since, late *prometheus.Desc }

// Metrics makes the metrics of a rotation, which is called like its prefix in etcd.
func (k Kind) Metrics() Metrics {
	of := prometheus.Labels{"rotation": strings.Trim(strings.TrimPrefix(k.Prefix, "/kthwd/"), "/")}
	return Metrics{
		prometheus.NewDesc("kthwd_rotation_stage_since_timestamp_seconds", "When the stage of a rotation has begun, as this controller knows it; 0 while none is under way.", nil, of),
		prometheus.NewDesc("kthwd_rotation_late_controllers", "Controllers that keep a rotation from going on, as this controller knows it: those that do not answer, or have not taken the stage.", nil, of),
	}
}

// Describe tells which they are.
func (m Metrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.since; ch <- m.late }

// Collect tells since when the stage lasts, the zero time for no rotation, and how many controllers are
// late.
func (m Metrics) Collect(ch chan<- prometheus.Metric, since time.Time, late int) {
	at := 0.0
	if !since.IsZero() {
		at = float64(since.UnixMilli()) / 1000
	} else {
		late = 0
	}
	ch <- prometheus.MustNewConstMetric(m.since, prometheus.GaugeValue, at)
	ch <- prometheus.MustNewConstMetric(m.late, prometheus.GaugeValue, float64(late))
}
