package tune

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kthwd/appliance/supervise"
)

const (
	// timerSlack lets the kernel put timers that end within 20 ms of each other
	// into one wake-up. The programs have some 400 short timers a second when
	// idle (a bookmark timer for each watch cache, two metrics ticks a second
	// for each work queue), each of which would wake a sleeping processor on its
	// own. No timer of theirs, raft's ticks of 50–100 ms included, needs better.
	timerSlack      = 20 * time.Millisecond
	prSetTimerSlack = 29 // PR_SET_TIMERSLACK, prctl(2)
	madvDontNeed    = 4  // MADV_DONTNEED, madvise(2)
)

// coalesceTimers sets the timer slack of all threads; those that come later
// inherit it. systemd's TimerSlackNSec= does the same from outside.
func coalesceTimers(log *slog.Logger) {
	// Not possible in a binary with cgo, where threads are not all Go's.
	if _, _, errno := syscall.AllThreadsSyscall(syscall.SYS_PRCTL, prSetTimerSlack, uintptr(timerSlack), 0); errno != 0 {
		log.Debug("timer slack not set", "err", errno)
	}
}

// dropStartCode unmaps the pages of the binary that are not used from now on:
// most of its code only serves the start. They are clean pages of a file, which the
// kernel reclaims when it needs memory; this only does so earlier, once. A page that is
// used again comes back from the page cache in a microsecond.
func dropStartCode(log *slog.Logger) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		from, to, ok := readOnlyMapping(line, exe)
		if !ok {
			continue
		}
		if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, from, to-from, madvDontNeed); errno != 0 {
			log.Debug("pages of the binary not dropped", "err", errno)
		}
	}
}

// readOnlyMapping reads a line of /proc/PID/maps (proc_pid_maps(5)). It is ok
// only for a mapping of file that cannot be written, because pages dropped there
// can be read again.
func readOnlyMapping(line, file string) (from, to uintptr, ok bool) {
	f := strings.Fields(line)
	if len(f) != 6 || f[5] != file || strings.Contains(f[1], "w") {
		return 0, 0, false
	}
	start, end, found := strings.Cut(f[0], "-")
	a, err1 := strconv.ParseUint(start, 16, 64)
	b, err2 := strconv.ParseUint(end, 16, 64)
	return uintptr(a), uintptr(b), found && err1 == nil && err2 == nil && b > a
}

// Process prepares this process for its start. The function it returns,
// called when everything is ready, switches to the steady state; it blocks for
// a quarter of a minute or until ctx ends.
func Process(log *slog.Logger) (ready func(context.Context)) {
	c := newCollector()
	if c != nil {
		logLimit(log, c.most)
		go prefault(log)
	} else {
		LimitMemory(log)
	}
	return func(ctx context.Context) {
		coalesceTimers(log)
		c.afterStart(ctx)
		if ctx.Err() == nil {
			dropStartCode(log)
		}
	}
}

const (
	briefStart  = 400         // GOGC of a start below startLimit, whose garbage is worth few collections
	briefSettle = time.Second // from ready to the end of the start's garbage
)

// Brief is Process for a control plane that is thrown away after a test: it takes no memory in
// advance, the garbage of the start goes back a second after ready, and timers stay exact.
func Brief(log *slog.Logger) (ready func(context.Context)) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		LimitMemory(log)
		return func(context.Context) {}
	}
	most := softLimit(GroupMemory())
	logLimit(log, most)
	debug.SetGCPercent(briefStart)
	debug.SetMemoryLimit(min(startLimit, most))
	return func(ctx context.Context) {
		supervise.Sleep(ctx, briefSettle)
		debug.SetGCPercent(idleGrowth)
		debug.SetMemoryLimit(most)
		debug.FreeOSMemory()
		dropStartCode(log)
	}
}
