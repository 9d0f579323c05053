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
	fsyncStart  = time.Minute // what a start writes does not count
	fsyncSlow   = 0.512       // seconds; a bound of upstream's buckets
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
	began   time.Time // of the first sample
	samples []fsyncAt // oldest first; while the start lasts, only the last one
}

type fsyncAt struct {
	at      time.Time
	buckets []*dto.Bucket
	count   uint64
	sum     float64 // seconds
}

// Sample reads the histogram, unless the last sample is younger than fsyncSample. Samples
// of the first minute only move the beginning of what Latency covers.
func (f *Fsyncs) Sample(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.samples); n > 0 && now.Sub(f.samples[n-1].at) < fsyncSample {
		return
	}
	f.add(readFsyncs(now))
}

func (f *Fsyncs) add(s fsyncAt) {
	if f.began.IsZero() {
		f.began = s.at
	}
	if s.at.Sub(f.began) <= fsyncStart {
		f.samples = nil
	}
	f.samples = append(f.samples, s)
	for len(f.samples) > 1 && s.at.Sub(f.samples[1].at) >= fsyncWindow {
		f.samples = f.samples[1:]
	}
}

// Forget makes Latency cover only what comes after it, as after a start.
func (f *Fsyncs) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.samples = nil
}

func readFsyncs(now time.Time) fsyncAt {
	s := fsyncAt{at: now}
	for _, m := range collect(fsyncHistogram()) {
		h := m.GetHistogram()
		s.buckets, s.count, s.sum = h.GetBucket(), h.GetSampleCount(), h.GetSampleSum()
	}
	return s
}

// Latency is the latency of the fsyncs between the oldest sample and now; nothing during
// the first minute, and until there is as much as one period to judge by.
func (f *Fsyncs) Latency(now time.Time) status.Latency {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.latency(readFsyncs(now))
}

func (f *Fsyncs) latency(to fsyncAt) status.Latency {
	if len(f.samples) == 0 || to.at.Sub(f.began) <= fsyncStart || to.at.Sub(f.samples[0].at) < fsyncSample {
		return status.Latency{}
	}
	return between(f.samples[0], to)
}

// between estimates the 99th percentile of the fsyncs between two samples, as
// Prometheus' histogram_quantile does.
func between(from, to fsyncAt) status.Latency {
	l := status.Latency{Count: to.count - from.count, Window: to.at.Sub(from.at), Spent: seconds(to.sum - from.sum)}
	l.Slow = slow(to) - slow(from)
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

// slow counts the calls that took longer than fsyncSlow.
func slow(s fsyncAt) uint64 {
	for _, b := range s.buckets {
		if b.GetUpperBound() >= fsyncSlow {
			return s.count - b.GetCumulativeCount()
		}
	}
	return 0
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
