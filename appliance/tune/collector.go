package tune

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"kthwd/appliance/supervise"
)

// While four programs start in one heap, more than 200 MB are allocated, and most of that is
// thrown away: collecting it again and again would be a third of the start's CPU
// time. From then on pace.go decides. A user's GOGC or GOMEMLIMIT replaces all of this.
const (
	// No collection below this while starting. Objects that stay lie among those that go, and such
	// fragments are not returned: 256 MiB leave 25 MiB of them more, and 144 MiB 9 less, for a start that
	// takes a tenth longer.
	startLimit = 176 << 20
	// More than an empty cluster keeps; so far below the limit that what is not heap (stacks, fragments)
	// leaves room for garbage: with 128 MiB a start with 1200 pods collected all the time.
	bigHeap   = 104 << 20
	bigGrowth = 100 // GOGC of a start that finds more than bigHeap to keep: Go's default

	settle      = 5 * time.Second // from ready to the steady state
	settleAgain = 10 * time.Second

	steerEvery = 15 * time.Second // … and after each collection
	changePart = 8                // a change of GOGC by less than this part is not worth the stop of the world
)

// collector is the one place that sets the garbage collector.
type collector struct {
	every time.Duration // steerEvery
	least uint64        // returnLeast
	half  time.Duration // halfTime

	mu       sync.Mutex
	phase    phase
	first    uint64 // automatic collections before the first that counts
	usable   uint64 // bytes of memory
	most     int64  // what all of the runtime's memory may be; the largest number for no limit
	pace     pace
	percent  int       // GOGC as set
	steered  time.Time // when steer was last called by Follow
	excess   int       // rounds in a row with excess
	returned time.Time // when memory was last returned …
	left     uint64    // … and what was held afterwards
}

type phase int

const (
	starting phase = iota
	startingBig
	steady
)

// newCollector takes over the garbage collector, or returns nil if the user
// has set it.
func newCollector(usable uint64, most int64) *collector {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return nil
	}
	c := &collector{every: steerEvery, least: returnLeast, half: halfTime, usable: usable, most: most, first: readAccount().automatic}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(min(startLimit, c.most))
	c.afterNextCollection()
	return c
}

// settleDown switches from the start's setting to the steady one and returns the garbage
// of the start to the system. It blocks for a quarter of a minute or until ctx ends.
func (c *collector) settleDown(ctx context.Context) {
	if c == nil {
		return
	}
	supervise.Sleep(ctx, settle)
	c.begin()
	supervise.Sleep(ctx, settleAgain) // the controllers' caches and first garbage
	if ctx.Err() == nil {
		c.giveBack()
	}
}

// begin begins the steady state.
func (c *collector) begin() {
	c.mu.Lock()
	c.phase, c.pace = steady, newPace(readAccount(), c.half)
	c.setGrowth(idleGrowth)
	c.mu.Unlock()
	c.giveBack()
}

// setGrowth needs the lock.
func (c *collector) setGrowth(percent int) {
	c.percent = percent
	debug.SetGCPercent(percent)
	debug.SetMemoryLimit(c.most)
}

// setLimit follows limits that have changed.
func (c *collector) setLimit(usable uint64, most int64) {
	c.mu.Lock()
	c.usable, c.most = usable, most
	if c.phase == starting {
		most = min(startLimit, most)
	}
	debug.SetMemoryLimit(most)
	c.mu.Unlock()
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
	now := readAccount()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.phase == steady:
		c.steer(now)
	case c.phase == starting && now.automatic > c.first && now.live > bigHeap:
		// On a cluster with much data the limit would make the collector run all the time.
		c.phase = startingBig
		c.setGrowth(bigGrowth)
	}
}

// steer needs the lock. It returns how much garbage the heap may have.
func (c *collector) steer(now account) (room uint64) {
	c.pace.observe(now)
	room = c.pace.room(c.usable)
	percent := growth(now.live, room)
	if change := percent - c.percent; max(change, -change) > c.percent/changePart || percent == idleGrowth && change != 0 {
		c.setGrowth(percent)
	}
	return room
}

// check steers, because no collection may come for minutes after a load, and returns memory
// that the load has left.
func (c *collector) check() {
	now := readAccount()
	c.mu.Lock()
	if c.phase != steady || now.at.Sub(c.steered) < c.every {
		c.mu.Unlock()
		return
	}
	c.steered = now.at
	room := c.steer(now)
	if excessive(now.held, now.live, room, c.least) && excessive(now.held, c.left, 0, c.least) {
		c.excess++
	} else {
		c.excess = 0
	}
	// The return is a collection, too, so that it must be within the budget.
	affordable := now.at.Sub(c.returned).Seconds() > c.pace.cost()/spareCores
	give := c.excess >= 2 && affordable
	c.mu.Unlock()
	if give {
		c.giveBack()
	}
}

// giveBack collects, and returns all free memory to the system.
func (c *collector) giveBack() {
	debug.FreeOSMemory()
	now := readAccount()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.returned, c.left, c.excess = now.at, now.held, 0
}
