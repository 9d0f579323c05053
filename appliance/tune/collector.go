// Package tune makes four programs in one heap cheap: at the start, under load, and
// while idle.
//
// Call Process once, first: it holds the garbage collector back during the start.
// Call the function that it returns when everything is ready: it switches to the
// idle setting, returns the start's memory, and lets the kernel coalesce timers. It
// blocks for a quarter of a minute.
//
//	afterStart := tune.Process(log)
//	…
//	go afterStart(ctx)
//
// UsableMemory is what the machine and its control groups leave to this process.
// LimitMemory sets a soft limit from it, for a process that only balances.
//
// If the user sets GOGC or GOMEMLIMIT, the package leaves the collector alone. It
// never calls into a program.
package tune

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"kthwd/appliance/supervise"
)

// Four programs share one heap, and no single GOGC suits it. While they start,
// 300 MB are allocated, most of it for OpenAPI documents, and thrown away: collecting
// that again and again is a third of the start's CPU time. An idle control plane
// makes less than 1 MB of garbage a second: a tight heap costs nothing then.
// Under load a tight heap costs throughput. So the collector is set by what
// there is to do. A user's GOGC or GOMEMLIMIT replaces all of this.
const (
	startLimit = 256 << 20 // no collection below this while starting; more would leave the heap in fragments
	bigHeap    = startLimit / 2
	bigGrowth  = 100 // GOGC of a start that finds more than bigHeap to keep: Go's default

	idleGrowth = 30               // GOGC while little happens
	busyEvery  = 5 * time.Second  // two collections within this time mean load
	busyGrowth = 400              // GOGC under load, less where it would be more than the room
	busyRoom   = 512 << 20        // what a load may add to the heap, less on a small machine
	busyShare  = 16               // … where it is this part of the memory
	calmAfter  = 15 * time.Second // the load is over after this long with less garbage than that

	settle      = 5 * time.Second // from ready to the idle setting
	settleAgain = 10 * time.Second
)

// collector is the one place that sets the garbage collector.
type collector struct {
	room uint64 // what a load may add to the heap
	most int64  // what all of it may be; the largest number for no limit

	mu        sync.Mutex
	phase     phase
	cycles    uint64    // automatic collections seen
	last      time.Time // when the newest of them was seen
	allocated uint64    // in the whole life of the process, at the last check for calm
}

type phase int

const (
	starting phase = iota
	startingBig
	idle
	busy
)

// newCollector takes over the garbage collector, or returns nil if the user
// has set it.
func newCollector() *collector {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	c := &collector{room: roomUnderLoad(UsableMemory()), most: softLimit(GroupMemory()), last: time.Now()}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(min(startLimit, c.most))
	c.afterNextCollection()
	return c
}

// afterStart switches from the start's setting to the idle one and returns the garbage
// of the start to the system. It blocks for a quarter of a minute or until ctx ends.
func (c *collector) afterStart(ctx context.Context) {
	if c == nil {
		return
	}
	supervise.Sleep(ctx, settle)
	c.calm()
	supervise.Sleep(ctx, settleAgain) // the controllers' caches and first garbage
	if ctx.Err() == nil {
		debug.FreeOSMemory()
	}
}

func (c *collector) calm() {
	c.mu.Lock()
	c.phase = idle
	c.setGrowth(idleGrowth)
	c.mu.Unlock()
	debug.FreeOSMemory()
}

func (c *collector) setGrowth(percent int) {
	debug.SetGCPercent(percent)
	debug.SetMemoryLimit(c.most)
}

// afterNextCollection calls collected once the next collection is over: the
// finalizer of an unreachable object runs then.
func (c *collector) afterNextCollection() {
	runtime.SetFinalizer(new([16]byte), func(*[16]byte) {
		c.collected()
		c.afterNextCollection()
	})
}

// collected looks at the collection that has just ended.
func (c *collector) collected() {
	now := readHeap()
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.cycles == c.cycles { // FreeOSMemory's, or the runtime's own after two quiet minutes
		return
	}
	pause := time.Since(c.last)
	c.cycles, c.last = now.cycles, time.Now()
	switch {
	case c.phase == starting && now.live > bigHeap:
		// On a cluster with much data the limit would make the collector run all the time.
		c.phase = startingBig
		c.setGrowth(bigGrowth)
	case c.phase == idle && pause < busyEvery:
		c.phase, c.allocated = busy, now.allocated
		c.setGrowth(growthUnderLoad(now.live, c.room))
		time.AfterFunc(calmAfter, c.checkCalm)
	case c.phase == busy:
		c.setGrowth(growthUnderLoad(now.live, c.room))
	}
}

// heap is the runtime's account of its heap, in bytes.
type heap struct{ cycles, live, allocated uint64 }

func readHeap() heap {
	sample := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}, {Name: "/gc/heap/live:bytes"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return heap{sample[0].Value.Uint64(), sample[1].Value.Uint64(), sample[2].Value.Uint64()}
}

// roomUnderLoad is how much a load may add to the heap on a machine with that much memory.
func roomUnderLoad(memory uint64) uint64 { return min(busyRoom, memory/busyShare) }

// growthUnderLoad bounds what a load may add to a heap that is large already.
func growthUnderLoad(live, room uint64) int {
	return int(min(busyGrowth, max(idleGrowth, room*100/max(live, 1))))
}

// checkCalm ends the busy phase when so little was allocated since the last check
// that the idle setting would not call it load.
func (c *collector) checkCalm() {
	now := readHeap()
	c.mu.Lock()
	made := now.allocated - c.allocated
	c.allocated = now.allocated
	c.mu.Unlock()
	if made > now.live*idleGrowth/100*uint64(calmAfter/busyEvery) {
		time.AfterFunc(calmAfter, c.checkCalm)
		return
	}
	c.calm()
}
