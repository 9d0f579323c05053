package etcdspace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/cause"
	"kthwd/appliance/etcd"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// UpkeepKey holds the last run of an Upkeep, as an upkeepRun.
const UpkeepKey = "/kthwd/space/upkeep"

const (
	upkeepLook  = 10 * time.Second // between two looks at the clock
	upkeepShare = 0.25             // of a file that must be free pages
	upkeepLeast = 64 << 20         // bytes that must be free pages
)

// Upkeep makes room by itself, in the time of the day that is set for it: once, if it is worth a
// pause, on the controller whose member leads etcd. Make one with NewUpkeep, and call Run.
type Upkeep struct {
	cfg UpkeepConfig

	mu     sync.Mutex
	begun  time.Time // of the last run here, or of a look that found another controller's
	failed string    // why the last one failed, or could not begin; "" if it did not
	since  time.Time // of failed
	runs   map[string]int
}

// UpkeepConfig configures an Upkeep.
type UpkeepConfig struct {
	// Window returns when the window that is open at a moment began and ends.
	Window func(now time.Time) (begin, end time.Time, open bool)
	Member *etcd.Member
	Layout pki.Layout
	Names  cause.Names // for commands
	Log    *slog.Logger
}

// The results of a run, as the metric has them.
const (
	upkeepDone   = "done"
	upkeepCut    = "window_over"
	upkeepFailed = "failed"
)

// upkeepRun is the content of UpkeepKey.
type upkeepRun struct {
	Begun time.Time `json:"begun"`
	By    string    `json:"by"` // name of the member
}

// NewUpkeep returns an Upkeep that has not begun.
func NewUpkeep(cfg UpkeepConfig) *Upkeep {
	return &Upkeep{cfg: cfg, runs: map[string]int{upkeepDone: 0, upkeepCut: 0, upkeepFailed: 0}}
}

// Run makes room in each window until ctx ends. A member that defragments then goes on.
func (u *Upkeep) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if begin, end, open := u.cfg.Window(time.Now()); open && u.leads() && !u.ranIn(begin, end) {
			if err := u.make(ctx, begin, end); ctx.Err() == nil {
				u.conclude(err)
			}
		}
		supervise.Sleep(ctx, upkeepLook)
	}
}

func (u *Upkeep) leads() bool {
	server := u.cfg.Member.Running()
	return server != nil && u.cfg.Member.Defragmenting().IsZero() && server.Server.Leader() == server.Server.MemberID()
}

// begin makes the next run one of the next window.
func (u *Upkeep) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.begun = time.Now()
}

// ranIn reports whether the last run was in a window. One that lies after it is of a clock that
// was wrong.
func (u *Upkeep) ranIn(begin, end time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !u.begun.Before(begin) && u.begun.Before(end)
}

var (
	errDone     = errors.New("a run of this window has begun already")
	errNotWorth = errors.New("no database has enough free pages")
)

// make makes room, unless another controller has done so since begin, or it is not worth it.
// It begins no defragmentation after end.
func (u *Upkeep) make(ctx context.Context, begin, end time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	c, err := Open(ctx, u.cfg.Layout)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := c.Plan(ctx)
	if !p.Status.Full() && !p.Status.worthUpkeep() { // then it does not matter that a member is unhealthy
		return errNotWorth
	}
	if last, errLast := c.lastUpkeep(ctx); errLast == nil && !last.Begun.Before(begin) && last.Begun.Before(end) {
		u.begin()
		u.cfg.Log.Info("room in etcd's databases was made in this window already", "at", last.Begun.Local().Format("15:04"), "by", text.Line(last.By))
		return errDone
	}
	if err != nil {
		return err
	}
	u.begin()
	u.cfg.Log.Info("room is made in etcd's databases", "until", end.Format("15:04"))
	if err := c.recordUpkeep(ctx, p.Status); err != nil && !p.Status.Full() { // with the alarm nothing can be recorded
		return err
	}
	f, err := c.Fix(ctx, p, func(step string) { u.cfg.Log.Info(text.Line(step)) })
	for _, m := range f.Members {
		if m.Took > 0 {
			u.cfg.Log.Info("etcd's database was defragmented", "member", m.Name, "before", text.Bytes(m.Before), "after", text.Bytes(m.After), "took", m.Took.Round(time.Millisecond))
		}
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) { // which etcd's error does not wrap
		return context.DeadlineExceeded
	}
	return err
}

// worthUpkeep reports whether a member has enough free pages for its clients to move.
func (s Status) worthUpkeep() bool {
	for _, m := range s.Members {
		if m.Free() >= upkeepLeast && float64(m.Free()) >= upkeepShare*float64(m.Size) {
			return true
		}
	}
	return false
}

// lastUpkeep returns the last run in the cluster; the zero one if none is known.
func (c *Cluster) lastUpkeep(ctx context.Context) (r upkeepRun, err error) {
	answer, err := c.local.Get(ctx, UpkeepKey)
	if err != nil || len(answer.Kvs) == 0 {
		return r, plain(err)
	}
	if json.Unmarshal(answer.Kvs[0].Value, &r) != nil {
		return upkeepRun{}, nil
	}
	return r, nil
}

func (c *Cluster) recordUpkeep(ctx context.Context, s Status) error {
	r := upkeepRun{Begun: time.Now()}
	for _, m := range s.Members {
		if m.Here {
			r.By = m.Name
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := c.local.Put(ctx, UpkeepKey, string(data)); err != nil {
		return fmt.Errorf("record the run: %w", plain(err))
	}
	return nil
}

// conclude counts and tells the end of a run.
func (u *Upkeep) conclude(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case errors.Is(err, errDone):
	case errors.Is(err, errNotWorth):
		u.failed = ""
	case err == nil:
		u.failed = ""
		u.runs[upkeepDone]++
	case errors.Is(err, context.DeadlineExceeded):
		u.runs[upkeepCut]++
		u.cfg.Log.Info("the window is over before every member was defragmented: the next one goes on")
	case u.failed != text.Line(err.Error()): // what keeps a run from its begin is looked at again and again
		u.failed, u.since = text.Line(err.Error()), time.Now()
		u.runs[upkeepFailed]++
		u.cfg.Log.Warn("no room was made in etcd's databases", "err", u.failed)
	}
}

// Findings tells a last run that failed. It does not block.
func (u *Upkeep) Findings() []status.Finding {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed == "" {
		return nil
	}
	return []status.Finding{{
		Health: status.Degraded, Kind: "etcd_upkeep", Since: u.since, Do: u.cfg.Names.Kthwd("etcd space --fix"),
		Text: "no room was made in etcd's databases in the window of --space-window: " + u.failed,
	}}
}

var upkeepDesc = prometheus.NewDesc("kthwd_etcd_upkeep_runs_total", "Runs of this controller that made room in etcd's databases in the window of --space-window, by the result: done, window_over or failed.", []string{"result"}, nil)

// Describe implements prometheus.Collector.
func (u *Upkeep) Describe(ch chan<- *prometheus.Desc) { ch <- upkeepDesc }

// Collect implements prometheus.Collector.
func (u *Upkeep) Collect(ch chan<- prometheus.Metric) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for result, n := range u.runs {
		ch <- prometheus.MustNewConstMetric(upkeepDesc, prometheus.CounterValue, float64(n), result)
	}
}
