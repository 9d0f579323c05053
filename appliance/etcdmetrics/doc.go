// Package etcdmetrics reads what the etcd member of this process shows only in its
// metrics: the peers with a live connection, when each peer was last heard, and how long
// the write-ahead log waits for the disk.
//
//	etcdmetrics.ActivePeers(id)
//	var fsyncs etcdmetrics.Fsyncs
//	fsyncs.Sample(now)          // often: it takes one sample in 15 s
//	fsyncs.Latency(now)
//
// PeersHeard must be sampled from the moment at which the leader is lost. A collector
// that upstream has renamed is missing without an error: then there are no active peers
// and no figures. The tests fail in that case. The package serves no metrics.
package etcdmetrics

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp" // registers the collectors of peers
	_ "go.etcd.io/etcd/server/v3/storage/wal"             // registers the collector of fsync

	"kthwd/appliance/series"
)

// registered returns the collector that etcd has registered with the description of c, or
// nil.
func registered(c prometheus.Collector) prometheus.Collector {
	return series.Registered(prometheus.DefaultRegisterer, c)
}

func collect(c prometheus.Collector) []*dto.Metric { return series.Read(c) }

func label(m *dto.Metric, name string) string { return series.Label(m, name) }
