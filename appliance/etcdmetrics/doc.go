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
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp" // registers the collectors of peers
	_ "go.etcd.io/etcd/server/v3/storage/wal"             // registers the collector of fsync
)

// registered returns the collector that etcd has registered with the description of c, or
// nil. etcd keeps its collectors in unexported variables, but an attempt to register an
// equal one again returns the existing one.
func registered(c prometheus.Collector) prometheus.Collector {
	var there prometheus.AlreadyRegisteredError
	switch err := prometheus.Register(c); {
	case err == nil:
		prometheus.Unregister(c) // no such collector: upstream has renamed it
	case errors.As(err, &there):
		return there.ExistingCollector
	}
	return nil
}

// collect reads the metrics of one collector. A nil collector has none.
func collect(c prometheus.Collector) (all []*dto.Metric) {
	if c == nil {
		return nil
	}
	ch := make(chan prometheus.Metric)
	go func() {
		c.Collect(ch)
		close(ch)
	}()
	for m := range ch {
		var out dto.Metric
		if m.Write(&out) == nil {
			all = append(all, &out)
		}
	}
	return all
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}
