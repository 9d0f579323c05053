package discovery

import "github.com/prometheus/client_golang/prometheus"

// reason is the label under which an error is counted.
type reason int

const (
	apiErrors reason = iota
	cacheErrors
	certificateErrors
	reasons // their number
)

var reasonNames = [reasons]string{"api", "cache", "certificate"}

func (d *Discovery) count(r reason) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.errors[r]++
}

var (
	successDesc  = prometheus.NewDesc("kthwd_lb_discovery_last_success_timestamp_seconds", "When an API server last answered; 0 for never.", nil, nil)
	backendsDesc = prometheus.NewDesc("kthwd_lb_discovery_backends", "Backends in the list in force; 0 while the configured ones are in force.", nil, nil)
	errorsDesc   = prometheus.NewDesc("kthwd_lb_discovery_errors_total", "Failed lists and watches, failures to cache the list, and failures to renew the certificate.", []string{"reason"}, nil)
	renewalsDesc = prometheus.NewDesc("kthwd_lb_discovery_certificate_renewals_total", "Renewals of the certificate in the kubeconfig of the discovery.", nil, nil)
	endsDesc     = prometheus.NewDesc("kthwd_lb_discovery_certificate_expiry_timestamp_seconds", "When the certificate expires that the discovery renews by itself; absent without one.", nil, nil)
)

// Collector returns the kthwd_lb_discovery_* series.
func (d *Discovery) Collector() prometheus.Collector { return collector{d} }

type collector struct{ d *Discovery }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{successDesc, backendsDesc, errorsDesc, renewalsDesc, endsDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	at := 0.0
	if t := c.d.status.LastSuccess; !t.IsZero() {
		at = float64(t.UnixNano()) / 1e9
	}
	ch <- prometheus.MustNewConstMetric(successDesc, prometheus.GaugeValue, at)
	ch <- prometheus.MustNewConstMetric(backendsDesc, prometheus.GaugeValue, float64(len(c.d.last.Backends)))
	ch <- prometheus.MustNewConstMetric(renewalsDesc, prometheus.CounterValue, float64(c.d.renewals.Load()))
	if cert := c.d.status.Certificate; cert != nil {
		ch <- prometheus.MustNewConstMetric(endsDesc, prometheus.GaugeValue, float64(cert.Ends.Unix()))
	}
	for i, name := range reasonNames {
		ch <- prometheus.MustNewConstMetric(errorsDesc, prometheus.CounterValue, float64(c.d.errors[i]), name)
	}
}
