package appliance

import (
	"context"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"syscall"
	"time"
)

// Four programs share one Go runtime here, and it has two lives. While they
// start, 600 MB of schemas and OpenAPI documents are made and thrown away;
// collecting that again and again is a third of the start's CPU time. Later
// little changes, and memory and an idle processor matter more.
const (
	startLimit   = 256 << 20 // no collection below this while starting; more would leave the heap in fragments
	bigHeap      = startLimit / 2
	bigGrowth    = 100 // GOGC of a start that finds more than bigHeap to keep: Go's default
	steadyGrowth = 50  // GOGC afterwards
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
	var starting atomic.Bool
	starting.Store(true)
	ours := os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == ""
	if ours {
		debug.SetGCPercent(-1)
		debug.SetMemoryLimit(startLimit)
		onBigHeap(&starting, func() { setGC(bigGrowth) })
	}
	return func(ctx context.Context) {
		coalesceTimers(log)
		if ours {
			steadyMemory(ctx, &starting)
		}
	}
}

func steadyMemory(ctx context.Context, starting *atomic.Bool) {
	sleep(ctx, settle)
	starting.Store(false)
	setGC(steadyGrowth)
	debug.FreeOSMemory()
	sleep(ctx, settleAgain)
	if ctx.Err() == nil {
		debug.FreeOSMemory()
	}
}

func setGC(percent int) {
	debug.SetGCPercent(percent)
	debug.SetMemoryLimit(math.MaxInt64)
}

// onBigHeap calls f once, after the first collection during the start that
// leaves more than bigHeap: on a cluster with much data the limit would make the
// collector run all the time.
func onBigHeap(starting *atomic.Bool, f func()) {
	collected := new([16]byte) // unreachable: its finalizer runs after the next collection
	runtime.SetFinalizer(collected, func(*[16]byte) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		switch {
		case !starting.Load():
		case live[0].Value.Uint64() > bigHeap:
			f()
		default:
			onBigHeap(starting, f)
		}
	})
}

// coalesceTimers sets the timer slack of all threads; those that come later
// inherit it. systemd's TimerSlackNSec= does the same from outside.
func coalesceTimers(log *slog.Logger) {
	// Not possible in a binary with cgo, where threads are not all Go's.
	if _, _, errno := syscall.AllThreadsSyscall(syscall.SYS_PRCTL, prSetTimerSlack, uintptr(timerSlack), 0); errno != 0 {
		log.Debug("timer slack not set", "err", errno)
	}
}
