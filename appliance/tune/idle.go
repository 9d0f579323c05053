package tune

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
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
