package lastrun

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"kthwd/appliance/cgroup"
	"kthwd/appliance/text"
)

// Start describes a run that begins.
type Start struct {
	Version string    // of kthwd
	Started time.Time // when the process began
	Limit   uint64    // bytes of memory that the control groups of the process allow; cgroup.NoLimit for none
	Needs   uint64    // bytes of memory that kthwd needs at least; 0 where that is not known
	Unit    string    // systemd's, for advice; empty means kthwd-controller
	Log     *slog.Logger

	// TakesOver tells that another process may run on, which this one replaces; that one
	// calls Release.
	TakesOver bool
}

// Run is the record of this process. All methods are safe for concurrent use, and none
// fails: a record that cannot be written is logged once.
type Run struct {
	files  Files
	log    *slog.Logger
	before *End
	needed uint64 // Memory.Cluster of the run before

	mu     sync.Mutex
	record Record
	kept   bool // the file is this run's
	failed bool
	trace  *os.File // receives the trace of a crash
}

// heartbeat is the time between two signs of life. One is a change of the file's time.
const heartbeat = 10 * time.Second

// Begin reads the record of the run before, and logs how it ended. The caller holds the
// lock of the data directory. A directory without a record stays as it is until Keep, so
// that a start that is refused leaves nothing behind.
func Begin(f Files, s Start) *Run {
	r := &Run{files: f, log: s.Log, record: Record{
		Version: s.Version, Unit: cmp.Or(s.Unit, "kthwd-controller"), PID: os.Getpid(), Process: processStart(os.Getpid()), Boot: boot(), Started: s.Started,
		Memory: Memory{Needs: s.Needs, Kills: kills(), Own: ownGroup()},
	}}
	const noLimit = cgroup.NoLimit / 4 // version 1 of control groups writes a number near half for none
	if s.Limit < noLimit {
		r.record.Memory.Limit = s.Limit
	}
	last, err := f.Read()
	switch {
	case errors.Is(err, ErrNone):
		return r
	case err != nil:
		r.before = &End{Kind: Unknown, Text: line("unknown: "+err.Error(), mostText)}
	case s.TakesOver && last.Runs():
		return r
	default:
		end := last.judge(f.gather(last))
		r.before = &end
	}
	if r.before.Good() {
		r.log.Info("the last run: " + r.before.Text)
	} else {
		r.log.Warn("the last run: "+r.before.Text, "kind", r.before.Kind, "hint", r.before.Do)
	}
	if err == nil {
		r.needed = last.Memory.Cluster
		r.record.Memory.Cluster = r.needed // for the end of a run that is killed before it knows better
	}
	r.record.Before = r.before
	r.Keep()
	return r
}

// Before is how the run before ended; nil if none is recorded.
func (r *Run) Before() *End {
	if r == nil {
		return nil
	}
	return r.before
}

// NeededBefore is how many bytes of memory the run before needed with the objects of its
// cluster; 0 if that is not recorded.
func (r *Run) NeededBefore() uint64 {
	if r == nil {
		return 0
	}
	return r.needed
}

// Keep records this run in the place of the one before, and makes Go's runtime write the
// trace of a crash into the directory.
func (r *Run) Keep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept {
		return
	}
	block, err := r.record.encode()
	if err == nil {
		err = r.files.create(block)
	}
	if err != nil {
		r.complain(err)
		return
	}
	r.kept = true
	if err := r.traceCrashes(); err != nil {
		r.complain(err)
	}
}

// traceCrashes keeps the trace of the last crash, and opens the file for the next one.
func (r *Run) traceCrashes() error {
	if info, err := os.Stat(r.files.Crash()); err == nil && info.Size() > 0 {
		if err := os.Rename(r.files.Crash(), r.files.CrashBefore()); err != nil {
			return err
		}
	}
	file, err := os.OpenFile(r.files.Crash(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	r.trace = file
	return debug.SetCrashOutput(file, debug.CrashOptions{})
}

// Ready records the moment at which everything was ready for the first time.
func (r *Run) Ready() {
	r.change(func(c *Record) { c.ReadyAt = time.Now() })
}

// Asked records that the process was asked to stop, and by what: a signal's name as cause,
// or context.Canceled for none.
func (r *Run) Asked(by error) {
	r.change(func(c *Record) {
		c.AskedAt = time.Now()
		if !errors.Is(by, context.Canceled) {
			c.Signal = line(by.Error(), 40)
		}
	})
}

// End records that the run ends, nil for in order. Call it last.
func (r *Run) End(err error) {
	r.change(func(c *Record) {
		c.EndedAt = time.Now()
		if err != nil {
			c.Error = line(text.Joined(err.Error()), mostError)
		}
	})
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trace != nil {
		_ = debug.SetCrashOutput(nil, debug.CrashOptions{}) // the end is recorded
		r.trace.Close()
		r.trace = nil
	}
}

// Release ends the record without an end: another process records its own run in the files from
// now on.
func (r *Run) Release() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = false
}

// Beat gives signs of life until ctx ends. needs returns how many bytes of memory the process
// needs with the objects of its cluster, 0 while that is not known; it may be nil.
func (r *Run) Beat(ctx context.Context, needs func() uint64) {
	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.beat(time.Now())
			if needs != nil {
				r.needs(needs())
			}
		case <-ctx.Done():
			return
		}
	}
}

// beat sets the file's time, and records the kernel's counters if they have changed: a
// process of another service was ended then, not this one.
func (r *Run) beat(now time.Time) {
	counted := kills()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.kept {
		return
	}
	for group, n := range counted {
		if r.record.Memory.Kills[group] != n {
			r.record.Memory.Kills = counted
			r.write()
			return
		}
	}
	if err := os.Chtimes(r.files.Record(), time.Time{}, now); err != nil {
		r.complain(err)
	}
}

// needs records what the process needs, unless it is about what is recorded.
func (r *Run) needs(bytes uint64) {
	r.mu.Lock()
	recorded := r.record.Memory.Cluster
	r.mu.Unlock()
	if difference := max(bytes, recorded) - min(bytes, recorded); bytes != 0 && difference > recorded/10 {
		r.change(func(c *Record) { c.Memory.Cluster = bytes })
	}
}

// change applies f to the record, and writes it.
func (r *Run) change(f func(*Record)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept {
		f(&r.record)
		r.write()
	}
}

func (r *Run) write() {
	block, err := r.record.encode()
	if err == nil {
		err = r.files.overwrite(block)
	}
	if err != nil {
		r.complain(err)
	}
}

func (r *Run) complain(err error) {
	if !r.failed {
		r.failed = true
		r.log.Warn("the record of this run is not written, so the next start cannot tell how it ended", "err", err)
	}
}

// Note adds what systemd says of the end to the record of a run that has ended. Where none
// is recorded, or the process goes on, it does nothing.
func (f Files) Note(s Service) error {
	r, err := f.Read()
	if errors.Is(err, ErrNone) || err == nil && r.Runs() {
		return nil
	}
	if err != nil {
		return err
	}
	alive := r.alive
	r.Service = &Service{At: s.At, Result: line(s.Result, 40), Code: line(s.Code, 40), Status: line(s.Status, 40)}
	block, err := r.encode()
	if err != nil {
		return err
	}
	return errors.Join(f.overwrite(block), os.Chtimes(f.Record(), time.Time{}, alive))
}
