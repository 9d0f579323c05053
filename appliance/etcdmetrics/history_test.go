package etcdmetrics

import (
	"math"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The series follows etcd's own histogram.
func TestHistory(t *testing.T) {
	s := History()
	s.Read(0)
	fsyncs, ok := fsyncHistogram().(prometheus.Observer)
	if !ok {
		t.Fatal("etcd has no such histogram: has upstream renamed it?")
	}
	if got := s.Read(30 * time.Second); len(got) != 1 || !math.IsNaN(got[0]) {
		t.Errorf("without a write: got %v", got)
	}
	for range 100 {
		fsyncs.Observe(0.003)
	}
	if got := s.Read(30 * time.Second); len(got) != 1 || got[0] < 0.002 || got[0] > 0.004 {
		t.Errorf("got %v, want 2 to 4 ms", got)
	}
}
