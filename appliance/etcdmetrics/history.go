package etcdmetrics

import (
	"math"
	"time"

	"kthwd/appliance/status/history"
)

// History is the 99th percentile of how long the write-ahead log waited for the disk.
func History() history.Source {
	var new history.Histogram
	return history.Source{Series: []history.Series{{Name: "etcd fsync p99", Unit: history.Seconds}}, Read: func(time.Duration) []float64 {
		all := collect(fsyncHistogram())
		if len(all) == 0 {
			return nil
		}
		var bounds []float64
		var counts []uint64
		h := all[0].GetHistogram()
		for _, b := range h.GetBucket() {
			if !math.IsInf(b.GetUpperBound(), 0) {
				bounds, counts = append(bounds, b.GetUpperBound()), append(counts, b.GetCumulativeCount())
			}
		}
		p99, _ := new.Next(bounds, append(counts, h.GetSampleCount()))
		return []float64{p99}
	}}
}
