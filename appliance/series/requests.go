package series

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/legacyregistry"

	"kthwd/appliance/status/history"
)

// requestHistogram has the name, the labels and the help of kube-apiserver's histogram of
// request durations (apiserver/pkg/endpoints/metrics/metrics.go).
func requestHistogram() prometheus.Collector {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "apiserver_request_duration_seconds",
		Help: "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
	}, []string{"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"})
}

// longRunning are the verbs of requests that take as long as the client wants.
var longRunning = []string{"WATCH", "WATCHLIST", "CONNECT"}

// Requests are the 99th percentile of the duration of kube-apiserver's requests and their
// rate, without watches and connections. It reads that one family, not the whole registry.
// loopback fails until the API server has been built: before that, upstream has not
// registered the family.
func Requests(loopback func() (*rest.Config, error)) history.Source {
	var family prometheus.Collector
	var new history.Histogram
	return history.Source{
		Series: []history.Series{{Name: "API request p99", Unit: history.Seconds}, {Name: "API requests", Unit: history.PerSecond}},
		Read: func(elapsed time.Duration) []float64 {
			if _, err := loopback(); family == nil && err == nil {
				family = registered(requestHistogram())
			}
			if family == nil {
				return nil
			}
			bounds, counts := sum(family)
			p99, n := new.Next(bounds, counts)
			if elapsed == 0 {
				return nil
			}
			return []float64{p99, float64(n) / elapsed.Seconds()}
		},
	}
}

// registered returns the collector that upstream has registered with the description of
// c, or nil. Upstream keeps it in an unexported variable, but an attempt to register an
// equal one again returns it.
func registered(c prometheus.Collector) prometheus.Collector {
	var there prometheus.AlreadyRegisteredError
	registry := legacyregistry.Registerer()
	switch err := registry.Register(c); {
	case err == nil:
		registry.Unregister(c) // upstream has renamed it; TestRequests fails then
	case errors.As(err, &there):
		return there.ExistingCollector
	}
	return nil
}

// sum adds up the buckets of a family, as history.Histogram takes them.
func sum(family prometheus.Collector) (bounds []float64, counts []uint64) {
	all := make(chan prometheus.Metric, 64)
	go func() {
		family.Collect(all)
		close(all)
	}()
	var total uint64
	for m := range all {
		var out dto.Metric
		if m.Write(&out) != nil || isLongRunning(&out) {
			continue
		}
		h := out.GetHistogram()
		total += h.GetSampleCount()
		for i, b := range h.GetBucket() {
			if math.IsInf(b.GetUpperBound(), 0) {
				continue
			}
			if i == len(bounds) {
				bounds, counts = append(bounds, b.GetUpperBound()), append(counts, 0)
			}
			counts[i] += b.GetCumulativeCount()
		}
	}
	return bounds, append(counts, total)
}

func isLongRunning(m *dto.Metric) bool {
	return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool {
		return l.GetName() == "verb" && slices.Contains(longRunning, l.GetValue())
	})
}
