package appliance

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// Four programs share one heap, and no single GOGC suits it. While they start,
// 600 MB of schemas and OpenAPI documents are made and thrown away: collecting
// that again and again is a third of the start's CPU time. An idle control plane
// makes less than 1 MB of garbage a second: a tight heap costs nothing then.
// Under load a tight heap costs throughput. So the collector is set by what
// there is to do. Who sets GOGC or GOMEMLIMIT decides alone.
const (
	startLimit = 256 << 20 // no collection below this while starting; more would leave the heap in fragments
	bigHeap    = startLimit / 2
	bigGrowth  = 100 // GOGC of a start that finds more than bigHeap to keep: Go's default

	idleGrowth = 30              // GOGC while little happens
	busyEvery  = 5 * time.Second // two collections within this time mean load
	busyGrowth = 200             // GOGC under load, less where it would be more than busyRoom
	busyRoom   = 256 << 20
	calmAfter  = 15 * time.Second // this long without a collection under load, and the load is over

	settle      = 5 * time.Second // from ready to the idle setting
	settleAgain = 10 * time.Second
)

// collector is the one place that sets the garbage collector.
type collector struct {
	mu     sync.Mutex
	phase  phase
	cycles uint64    // automatic collections seen
	last   time.Time // when the newest of them was seen
}

type phase int

const (
	starting phase = iota
	startingBig
	idle
	busy
)

// newCollector takes over the garbage collector, or returns nil where the user
// has set it.
func newCollector() *collector {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	c := &collector{last: time.Now()}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(startLimit)
	c.afterNextCollection()
	return c
}

// settled goes over from the start to the idle setting and gives the garbage of
// the start back to the system. It blocks for a quarter of a minute or until ctx ends.
func (c *collector) settled(ctx context.Context) {
	if c == nil {
		return
	}
	sleep(ctx, settle)
	c.calm()
	sleep(ctx, settleAgain) // the controllers' caches and first garbage
	if ctx.Err() == nil {
		debug.FreeOSMemory()
	}
}

func (c *collector) calm() {
	c.mu.Lock()
	c.phase = idle
	setGrowth(idleGrowth)
	c.mu.Unlock()
	debug.FreeOSMemory()
}

func setGrowth(percent int) {
	debug.SetGCPercent(percent)
	debug.SetMemoryLimit(math.MaxInt64)
}

// afterNextCollection calls collected once the next collection is over: the
// finalizer of an object that nobody holds runs then.
func (c *collector) afterNextCollection() {
	runtime.SetFinalizer(new([16]byte), func(*[16]byte) {
		c.collected()
		c.afterNextCollection()
	})
}

// collected looks at the collection that has just ended.
func (c *collector) collected() {
	sample := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	cycles, live := sample[0].Value.Uint64(), sample[1].Value.Uint64()
	c.mu.Lock()
	defer c.mu.Unlock()
	if cycles == c.cycles { // FreeOSMemory's, or the runtime's own after two quiet minutes
		return
	}
	pause := time.Since(c.last)
	c.cycles, c.last = cycles, time.Now()
	switch {
	case c.phase == starting && live > bigHeap:
		// On a cluster with much data the limit would make the collector run all the time.
		c.phase = startingBig
		setGrowth(bigGrowth)
	case c.phase == idle && pause < busyEvery:
		c.phase = busy
		setGrowth(growthUnderLoad(live))
		time.AfterFunc(calmAfter, c.checkCalm)
	case c.phase == busy:
		setGrowth(growthUnderLoad(live))
	}
}

// growthUnderLoad bounds what a load may add to a heap that is large already.
func growthUnderLoad(live uint64) int {
	return int(min(busyGrowth, max(idleGrowth, busyRoom*100/max(live, 1))))
}

// checkCalm ends the busy phase when collections have become rare.
func (c *collector) checkCalm() {
	c.mu.Lock()
	quiet := time.Since(c.last)
	c.mu.Unlock()
	if quiet < calmAfter {
		time.AfterFunc(calmAfter-quiet, c.checkCalm)
		return
	}
	c.calm()
}
