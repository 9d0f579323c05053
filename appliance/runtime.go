package appliance

import (
	"context"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"syscall"
	"time"
)

// Four programs share one Go runtime here, and it has two lives. While they
// start, 600 MB of schemas and OpenAPI documents are made and thrown away;
// collecting that again and again is a third of the start's CPU time. Later
// little changes, and memory and an idle processor matter more.
const (
	startGrowth  = -1 // GOGC while starting: only startLimit makes it collect
	startLimit   = 384 << 20
	steadyGrowth = 50 // GOGC afterwards; Go's default is 100
	settle       = 5 * time.Second
	settleAgain  = 25 * time.Second // the controllers' caches and first garbage

	// timerSlack lets the kernel put timers that end within 10 ms of each other
	// into one wake-up. The programs have some 400 short timers a second when
	// idle (a bookmark timer for each watch cache, two metrics ticks a second
	// for each work queue), each of which would wake a sleeping processor on its
	// own. No timer of theirs, raft's 50–100 ms ticks included, needs better.
	timerSlack      = 10 * time.Millisecond
	prSetTimerSlack = 29 // PR_SET_TIMERSLACK, prctl(2)
)

// tuneRuntime holds collections back until the programs are up. The function it
// returns, called when everything is ready, goes over to the steady state and
// gives the garbage of the start back to the system; it blocks for half a
// minute or until ctx ends. Who sets GOGC or GOMEMLIMIT decides alone.
func tuneRuntime(log *slog.Logger) (ready func(context.Context)) {
	ours := os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == ""
	if ours {
		debug.SetGCPercent(startGrowth)
		debug.SetMemoryLimit(startLimit)
	}
	return func(ctx context.Context) {
		coalesceTimers(log)
		if ours {
			steadyMemory(ctx)
		}
	}
}

func steadyMemory(ctx context.Context) {
	sleep(ctx, settle)
	debug.SetGCPercent(steadyGrowth)
	debug.SetMemoryLimit(math.MaxInt64)
	debug.FreeOSMemory()
	sleep(ctx, settleAgain)
	if ctx.Err() == nil {
		debug.FreeOSMemory()
	}
}

// coalesceTimers sets the timer slack of all threads; those that come later
// inherit it. systemd's TimerSlackNSec= does the same from outside.
func coalesceTimers(log *slog.Logger) {
	// Not possible in a binary with cgo, where threads are not all Go's.
	if _, _, errno := syscall.AllThreadsSyscall(syscall.SYS_PRCTL, prSetTimerSlack, uintptr(timerSlack), 0); errno != 0 {
		log.Debug("timer slack not set", "err", errno)
	}
}
