package etcd

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/status"
)

// SerializableRead reads a key that is not there, as this member has it.
func (e *Member) SerializableRead(ctx context.Context) error {
	e.mu.Lock()
	server := e.server
	e.mu.Unlock()
	if server == nil {
		return errors.New("etcd has not started")
	}
	_, err := server.Server.Range(ctx, &pb.RangeRequest{Key: []byte("kthwd"), Serializable: true, Limit: 1})
	return err
}

// What etcd keeps in unexported variables is found through the registry: who
// registers the same collector again is told which one is there.
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

// activePeersGauge is 1 for each peer with a live stream (etcdserver/api/rafthttp/metrics.go).
var activePeersGauge = sync.OnceValue(func() prometheus.Collector {
	return registered(prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "etcd_network_active_peers", Help: "The current number of active peer connections.",
	}, []string{"Local", "Remote"}))
})

// fsyncHistogram is how long the write-ahead log waited for the disk
// (storage/wal/metrics.go).
var fsyncHistogram = sync.OnceValue(func() prometheus.Collector {
	return registered(prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "etcd_disk_wal_fsync_duration_seconds", Help: "The latency distributions of fsync called by WAL.",
	}))
})

// collect reads the metrics of one collector; none of nil.
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

// ActivePeers are those with a live stream to the local member, by their ID.
func ActivePeers(local types.ID) map[string]bool {
	active := map[string]bool{}
	for _, m := range collect(activePeersGauge()) {
		if label(m, "Local") == local.String() && m.GetGauge().GetValue() > 0 {
			active[label(m, "Remote")] = true
		}
	}
	return active
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// The window over which the disk is judged.
const (
	fsyncSample = 15 * time.Second
	fsyncWindow = 5 * time.Minute
)

// fsyncs keeps samples of the histogram, for the fsyncs of the last minutes only.
type fsyncs struct {
	mu      sync.Mutex
	samples []fsyncAt // oldest first
}

type fsyncAt struct {
	at      time.Time
	buckets []*dto.Bucket
	count   uint64
}

// sample reads the histogram if the last time is long enough ago.
func (f *fsyncs) sample(now time.Time) {
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

// latency is the verdict on the window up to now.
func (f *fsyncs) latency(now time.Time) status.Latency {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.samples) == 0 {
		return status.Latency{}
	}
	return between(f.samples[0], readFsyncs(now))
}

// between estimates the 99th percentile of what came after from, as
// histogram_quantile does.
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
	l.P99 = seconds(lower) // longer than the last bucket tells
	return l
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// Member is what this controller's etcd knows of itself and its cluster; nil
// until it has started.
func (e *Member) Member() *status.Member {
	e.mu.Lock()
	server := e.server
	e.mu.Unlock()
	if server == nil {
		return nil
	}
	s := server.Server
	m := &status.Member{
		ID: s.MemberID().String(), Name: e.cfg.Name, Leader: s.Leader() == s.MemberID() && s.Leader() != 0,
		Learner: s.IsLearner(), Term: s.Term(), Applied: s.AppliedIndex(),
		Quota: quota(e.cfg), Fsync: e.fsyncs.latency(time.Now()),
	}
	if b := s.Backend(); b != nil {
		m.Size, m.InUse = b.Size(), b.SizeInUse()
	}
	for _, a := range s.Alarms() {
		if alarm := a.GetAlarm().String(); !slices.Contains(m.Alarms, alarm) {
			m.Alarms = append(m.Alarms, alarm)
		}
	}
	active := e.Reachable(server)
	for _, p := range s.Cluster().Members() {
		local := p.ID == s.MemberID()
		m.Members = append(m.Members, status.MemberInfo{
			ID: p.ID.String(), Name: p.Name, URLs: p.PeerURLs, Learner: p.IsLearner,
			Local: local, Leader: p.ID == s.Leader(), Active: local || active[p.ID.String()],
		})
	}
	return m
}

// quota is how large the database may get (storage/quota.go).
func quota(cfg *embed.Config) int64 {
	if cfg.QuotaBackendBytes > 0 {
		return cfg.QuotaBackendBytes
	}
	return 2 << 30
}
