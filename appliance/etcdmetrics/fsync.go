package etcdmetrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"kthwd/appliance/status"
)

// How often the histogram is sampled, and the period that Latency covers.
const (
	fsyncSample = 15 * time.Second
	fsyncWindow = 5 * time.Minute
)

// fsyncHistogram counts how long the write-ahead log waited for the disk
// (storage/wal/metrics.go).
var fsyncHistogram = sync.OnceValue(func() prometheus.Collector {
	return registered(prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "etcd_disk_wal_fsync_duration_seconds", Help: "The latency distributions of fsync called by WAL.",
	}))
})

// Fsyncs keeps samples of the histogram, so that Latency covers only the last minutes.
// The zero value is ready for use, from any goroutine.
type Fsyncs struct {
	mu      sync.Mutex
	samples []fsyncAt // oldest first
}

type fsyncAt struct {
	at      time.Time
	buckets []*dto.Bucket
	count   uint64
}

// Sample reads the histogram, unless the last sample is younger than fsyncSample.
func (f *Fsyncs) Sample(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.samples); n > 0 && now.Sub(f.samples[n-1].at) < fsyncSample {
		return
	}
	f.samples = append(f.samples, readFsyncs(now))
	for len(f.samples) > 1 && now.Sub(f.samples[1].at) >= fsyncWindow {
		f.samples = f.samples[1:]
	}
}

func readFsyncs(now time.Time) fsyncAt {
	s := fsyncAt{at: now}
	for _, m := range collect(fsyncHistogram()) {
		s.buckets, s.count = m.GetHistogram().GetBucket(), m.GetHistogram().GetSampleCount()
	}
	return s
}

// Latency is the latency of the fsyncs between the oldest sample and now.
func (f *Fsyncs) Latency(now time.Time) status.Latency {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.samples) == 0 {
		return status.Latency{}
	}
	return between(f.samples[0], readFsyncs(now))
}

// between estimates the 99th percentile of the fsyncs between two samples, as
// Prometheus' histogram_quantile does.
func between(from, to fsyncAt) status.Latency {
	l := status.Latency{Count: to.count - from.count, Window: to.at.Sub(from.at)}
	if l.Count == 0 {
		return l
	}
	rank := 0.99 * float64(l.Count)
	below, lower := 0.0, 0.0
	for i, b := range to.buckets {
		n := float64(b.GetCumulativeCount())
		if i < len(from.buckets) {
			n -= float64(from.buckets[i].GetCumulativeCount())
		}
		if n >= rank && n > below {
			l.P99 = seconds(lower + (b.GetUpperBound()-lower)*(rank-below)/(n-below))
			return l
		}
		below, lower = n, b.GetUpperBound()
	}
	l.P99 = seconds(lower) // at least: it lies above the last bucket
	return l
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
