package etcdmetrics

import (
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// etcd still registers the collectors that are found by their description.
func TestRegistered(t *testing.T) {
	if activePeersGauge() == nil {
		t.Error("etcd_network_active_peers: not found")
	}
	if fsyncHistogram() == nil || len(readFsyncs(time.Now()).buckets) == 0 {
		t.Error("etcd_disk_wal_fsync_duration_seconds: not found")
	}
}

func TestBetween(t *testing.T) {
	bounds := []float64{0.001, 0.002, 0.004}
	sample := func(at time.Duration, cumulative ...uint64) fsyncAt {
		s := fsyncAt{at: time.Unix(0, 0).Add(at), count: cumulative[len(bounds)]}
		for i := range bounds {
			s.buckets = append(s.buckets, &dto.Bucket{UpperBound: &bounds[i], CumulativeCount: &cumulative[i]})
		}
		return s
	}
	for _, tt := range []struct {
		from, to fsyncAt
		p99      time.Duration
		count    uint64
	}{
		{sample(0, 0, 0, 0, 0), sample(time.Minute, 0, 100, 100, 100), 1990 * time.Microsecond, 100},
		{sample(0, 500, 500, 500, 500), sample(time.Minute, 500, 500, 600, 600), 3980 * time.Microsecond, 100}, // earlier fsyncs do not count
		{sample(0, 0, 0, 0, 0), sample(time.Minute, 0, 0, 0, 10), 4 * time.Millisecond, 10},                    // at least
		{sample(0, 9, 9, 9, 9), sample(time.Minute, 9, 9, 9, 9), 4 * time.Millisecond, 0},
	} {
		got := between(tt.from, tt.to)
		if got.Count != tt.count || got.Window != time.Minute || tt.count > 0 && got.P99 != tt.p99 {
			t.Errorf("got %+v, want p99 %v of %d", got, tt.p99, tt.count)
		}
	}
}

// fsyncs are calls of equal length on a disk that does nothing else.
type fsyncs struct {
	at    time.Duration
	count uint64
	sum   float64
}

// The start does not count, and the slowest disk has too few calls for a percentile but is
// found.
func TestFsyncsLatency(t *testing.T) {
	bounds := []float64{0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192}
	begin := time.Unix(0, 0)
	sample := func(s fsyncs, each float64) fsyncAt {
		out := fsyncAt{at: begin.Add(s.at), count: s.count, sum: s.sum}
		for i := range bounds {
			n := uint64(0)
			if each <= bounds[i] {
				n = s.count
			}
			out.buckets = append(out.buckets, &dto.Bucket{UpperBound: &bounds[i], CumulativeCount: &n})
		}
		return out
	}
	var f Fsyncs
	for at := time.Duration(0); at <= 2*time.Minute; at += 15 * time.Second {
		n := uint64(at / (2400 * time.Millisecond))
		s := sample(fsyncs{at, n, 2.4 * float64(n)}, 2.4)
		got := f.latency(s)
		f.add(s)
		if at < fsyncStart+fsyncSample {
			if got.Count != 0 || got.Window != 0 {
				t.Errorf("after %v: %+v; want nothing", at, got)
			}
			continue
		}
		if got.Window != at-fsyncStart || got.Slow != got.Count || got.Count == 0 || got.Spent < got.Window*8/10 || got.Spent > got.Window {
			t.Errorf("after %v: %+v; want only slow calls, since the first minute", at, got)
		}
	}
}
