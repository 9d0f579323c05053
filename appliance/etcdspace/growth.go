package etcdspace

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/cause"
	"kthwd/appliance/etcd"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// SamplesKey holds the sizes of the last weeks, as samples. The leader writes it.
const SamplesKey = "/kthwd/space/samples"

const (
	growthLook    = time.Minute   // between two looks at the key
	sampleEvery   = time.Hour     // between two samples
	sampleCount   = 14 * 24       // two weeks
	trendLeast    = 6 * time.Hour // of samples; a shorter time shows a morning, not a trend
	trendFarthest = 10 * 365 * 24 * time.Hour
	fullSoon      = 7 * 24 * time.Hour
)

// samples is the content of SamplesKey.
type samples struct {
	At    []int64 `json:"at"`    // Unix seconds, oldest first
	InUse []int64 `json:"inUse"` // bytes
}

func (s *samples) add(at time.Time, inUse int64) {
	s.At, s.InUse = append(s.At, at.Unix()), append(s.InUse, inUse)
	if more := len(s.At) - sampleCount; more > 0 {
		s.At, s.InUse = s.At[more:], s.InUse[more:]
	}
}

func parseSamples(data []byte) (s samples) {
	if json.Unmarshal(data, &s) != nil || len(s.At) != len(s.InUse) || len(s.At) > sampleCount {
		return samples{}
	}
	for i := 1; i < len(s.At); i++ {
		if s.At[i] < s.At[i-1] {
			return samples{} // of clocks that differ
		}
	}
	return s
}

// due reports whether another sample should be taken. A last one in the future is another
// machine's clock.
func (s samples) due(now time.Time) bool {
	if len(s.At) == 0 {
		return true
	}
	age := now.Sub(time.Unix(s.At[len(s.At)-1], 0))
	return age >= sampleEvery || age < -sampleEvery
}

// Trend is how the data in the database grow.
type Trend struct {
	PerDay float64       `json:"bytesPerDay"` // less than 0 if they shrink
	Over   time.Duration `json:"overNanoseconds"`
	Full   time.Time     `json:"full,omitzero"` // when the data reach the quota; zero if they do not grow
}

// trend fits a line to the samples; nil if there are too few.
func (s samples) trend(inUse, quota int64, now time.Time) *Trend {
	n := len(s.At)
	if n < 3 || time.Duration(s.At[n-1]-s.At[0])*time.Second < trendLeast {
		return nil
	}
	var x, y, xx, xy float64
	for i := range s.At {
		day, size := float64(s.At[i]-s.At[0])/(24*3600), float64(s.InUse[i])
		x, y, xx, xy = x+day, y+size, xx+day*day, xy+day*size
	}
	f := float64(n)
	t := &Trend{PerDay: (f*xy - x*y) / (f*xx - x*x), Over: time.Duration(s.At[n-1]-s.At[0]) * time.Second}
	if t.PerDay > 0 && quota > 0 {
		left := max(float64(quota-inUse), 0) / t.PerDay * 24 * float64(time.Hour)
		if left < float64(trendFarthest) {
			t.Full = now.Add(time.Duration(left))
		}
	}
	return t
}

// String describes a trend; a nil one is not known yet.
func (t *Trend) String() string {
	if t == nil {
		return "not known yet: kthwd needs six hours of samples"
	}
	over := fmt.Sprintf("over the last %s", status.Age(t.Over))
	switch {
	case t.PerDay <= 0:
		return "none " + over
	case t.Full.IsZero():
		return fmt.Sprintf("%s a day %s; not full within ten years", text.Bytes(int64(t.PerDay)), over)
	}
	return fmt.Sprintf("%s a day %s; full on %s", text.Bytes(int64(t.PerDay)), over, t.Full.UTC().Format(time.DateOnly))
}

// Growth returns the trend of the member here; nil if it is not known yet.
func (c *Cluster) Growth(ctx context.Context, s Status) (*Trend, error) {
	answer, err := c.local.Get(ctx, SamplesKey, clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", SamplesKey, plain(err))
	}
	for _, m := range s.Members {
		if m.Here && len(answer.Kvs) > 0 {
			return parseSamples(answer.Kvs[0].Value).trend(m.InUse, m.Quota, time.Now()), nil
		}
	}
	return nil, nil
}

// Growth takes samples while a controller runs, and tells the trend. Make one with NewGrowth
// and call Run.
type Growth struct {
	member *etcd.Member
	names  cause.Names
	log    *slog.Logger

	mu    sync.Mutex
	known samples
}

// NewGrowth returns a Growth that has not begun.
func NewGrowth(member *etcd.Member, names cause.Names, log *slog.Logger) *Growth {
	return &Growth{member: member, names: names, log: log}
}

// Run reads the samples, and adds one each hour while this member leads, until ctx ends.
func (g *Growth) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := g.look(ctx, time.Now()); err != nil {
			g.log.Debug("the size of etcd's database is not recorded", "err", err)
		}
		supervise.Sleep(ctx, growthLook)
	}
}

func (g *Growth) look(ctx context.Context, now time.Time) error {
	server := g.member.Running()
	if server == nil || !g.member.Defragmenting().IsZero() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	answer, err := server.Server.Range(ctx, &pb.RangeRequest{Key: []byte(SamplesKey), Serializable: true})
	if err != nil {
		return err
	}
	s := samples{}
	if len(answer.Kvs) > 0 {
		s = parseSamples(answer.Kvs[0].Value)
	}
	if server.Server.Leader() == server.Server.MemberID() && s.due(now) {
		s.add(now, server.Server.Backend().SizeInUse())
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		client := v3client.New(server.Server)
		defer client.Close()
		if _, err := client.Put(ctx, SamplesKey, string(data)); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.known = s
	return nil
}

// trend is that of this member; nil if it is not known.
func (g *Growth) trend(now time.Time) *Trend {
	m := g.member.Member()
	if m == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.known.trend(m.InUse, m.Quota, now)
}

// Findings tells a database that will be full within a week. It does not block.
func (g *Growth) Findings() []status.Finding {
	now := time.Now()
	t := g.trend(now)
	if t == nil || t.Full.IsZero() || t.Full.Sub(now) >= fullSoon {
		return nil
	}
	return []status.Finding{{
		Health: status.Degraded, Kind: "etcd_growth", Do: g.names.Kthwd("etcd space") + "; it shows what fills the database",
		Text: fmt.Sprintf("etcd's data grow by %s a day, and reach the quota on %s", text.Bytes(int64(t.PerDay)), t.Full.UTC().Format(time.DateOnly)),
	}}
}

var (
	growthDesc = prometheus.NewDesc("kthwd_etcd_growth_bytes_per_day", "Growth of the data in etcd's database over the last two weeks at most; 0 until six hours are known.", nil, nil)
	fullDesc   = prometheus.NewDesc("kthwd_etcd_full_timestamp_seconds", "When the data in etcd's database reach its quota at this growth; 0 if they do not grow.", nil, nil)
	defragDesc = prometheus.NewDesc("kthwd_etcd_defragmenting", "Whether the etcd member of this controller defragments its database, and its clients are served by others: 1 or 0.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g *Growth) Describe(ch chan<- *prometheus.Desc) {
	ch <- growthDesc
	ch <- fullDesc
	ch <- defragDesc
}

// Collect implements prometheus.Collector.
func (g *Growth) Collect(ch chan<- prometheus.Metric) {
	perDay, full, defragments := 0.0, 0.0, 0.0
	if t := g.trend(time.Now()); t != nil {
		perDay = t.PerDay
		if !t.Full.IsZero() {
			full = float64(t.Full.Unix())
		}
	}
	if !g.member.Defragmenting().IsZero() {
		defragments = 1
	}
	ch <- prometheus.MustNewConstMetric(growthDesc, prometheus.GaugeValue, perDay)
	ch <- prometheus.MustNewConstMetric(fullDesc, prometheus.GaugeValue, full)
	ch <- prometheus.MustNewConstMetric(defragDesc, prometheus.GaugeValue, defragments)
}
