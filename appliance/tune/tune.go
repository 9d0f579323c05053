// Package tune makes four programs in one heap cheap: at the start, under load, and
// while idle.
//
// Call Process once, first: it holds the garbage collector back during the start.
// Settle, called when everything is ready, switches to the steady state, returns the start's
// memory, and lets the kernel coalesce timers. Follow runs beside all of it.
//
//	t := tune.Process(tune.Config{Log: log})
//	go t.Follow(ctx)
//	…
//	t.Settle(ctx)
//
// UsableMemory is what the machine and its control groups leave to this process.
// LimitMemory sets a soft limit from it, for a process that only balances.
//
// If the user sets GOGC or GOMEMLIMIT, the package leaves the collector alone. It
// never calls into a program.
package tune

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
)

const (
	briefStart  = 50          // GOGC of a start: 100 is a sixth faster, and leaves 12 MiB more in fragments
	briefSettle = time.Second // from ready to the end of the start's garbage

	followEvery = 5 * time.Second // a control group's limit may be lowered, and its processes be ended for it
)

// Config configures a Tuner.
type Config struct {
	Unit string // systemd's, for advice; empty means kthwd-controller
	Log  *slog.Logger

	// Brief is for a control plane that is thrown away after a test: it takes no memory in
	// advance, the garbage of the start goes back a second after ready, and timers stay exact.
	Brief bool
}

// Tuner sets the garbage collector of this process. Make one with Process.
type Tuner struct {
	log   *slog.Logger
	brief bool
	own   *collector // nil where the user has set the collector, and for a brief process
	need  need
	limit int64 // what was set last; used by Follow only

	settled atomic.Bool
}

// Process prepares this process for its start.
func Process(cfg Config) *Tuner {
	t := &Tuner{log: cfg.Log, brief: cfg.Brief, need: need{unit: cmp.Or(cfg.Unit, "kthwd-controller"), log: cfg.Log}}
	t.limit = softLimit(GroupMemory())
	switch {
	case os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "":
		LimitMemory(cfg.Log)
		return t
	case cfg.Brief:
		debug.SetGCPercent(briefStart)
		debug.SetMemoryLimit(min(startLimit, t.limit))
	default:
		t.own = newCollector(UsableMemory(), t.limit)
		go prefault(cfg.Log)
	}
	logLimit(cfg.Log, t.limit)
	return t
}

// Settle switches to the steady state. Call it when everything is ready. It blocks for a quarter
// of a minute or until ctx ends.
func (t *Tuner) Settle(ctx context.Context) {
	switch {
	case t.brief && t.userSet():
		return
	case t.brief:
		supervise.Sleep(ctx, briefSettle)
		debug.SetGCPercent(idleGrowth)
		debug.SetMemoryLimit(softLimit(GroupMemory()))
		debug.FreeOSMemory()
	default:
		coalesceTimers(t.log)
		t.own.settleDown(ctx)
	}
	t.settled.Store(true)
	if ctx.Err() == nil {
		dropStartCode(t.log)
	}
}

func (t *Tuner) userSet() bool { return os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" }

// Follow sets the collector by what happens, and follows the limits of the control groups, until
// ctx ends. For a brief process it does nothing.
func (t *Tuner) Follow(ctx context.Context) {
	if t.brief {
		return
	}
	for ctx.Err() == nil {
		group, usable := GroupMemory(), UsableMemory()
		t.followLimit(group, usable)
		t.compareNeed(group, usable)
		if t.own != nil {
			t.own.check()
		}
		supervise.Sleep(ctx, followEvery)
	}
}

// followLimit applies a limit that has changed.
func (t *Tuner) followLimit(group, usable uint64) {
	if limit := softLimit(group); limit != t.limit {
		t.log.Info("the memory limit of the control group has changed", "limit-mib", shown(limit), "before-mib", shown(t.limit))
		lower := limit < t.limit
		t.limit = limit
		t.apply(limit, usable)
		if lower && t.own != nil {
			t.own.giveBack() // before the kernel looks for it
		}
	}
}

// compareNeed compares what the process needs with what it may use.
func (t *Tuner) compareNeed(group, usable uint64) {
	now := readAccount()
	needs := needOf(now)
	if !t.settled.Load() {
		needs = max(needs, t.need.before)
	}
	t.need.compare(needs, usable, usable == group, now.at)
}

// Needed tells what Needs was at the end of the run before: until this one is settled, that is
// the better estimate. Call it before Follow.
func (t *Tuner) Needed(before uint64) { t.need.before = before }

// Needs is how many bytes of memory the process needs with the objects of its cluster, rounded
// up; 0 until it is settled.
func (t *Tuner) Needs() uint64 {
	if !t.settled.Load() {
		return 0
	}
	t.need.mu.Lock()
	defer t.need.mu.Unlock()
	return t.need.bytes
}

// Findings returns a finding while the memory is too small for the cluster. It does not block.
func (t *Tuner) Findings() []status.Finding { return t.need.findings() }

// apply sets a limit, unless GOMEMLIMIT is set.
func (t *Tuner) apply(limit int64, usable uint64) {
	if t.own != nil {
		t.own.setLimit(usable, limit)
	} else if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
	}
}
