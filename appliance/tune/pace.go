package tune

import (
	"math"
	"runtime/metrics"
	"time"
)

// The two bounds. A collection costs CPU time in proportion to what lives, and saves memory in
// proportion to how early it comes. So the heap grows until collection is within its share of
// the CPU time, but garbage never takes more than what lives, as with Go's own default.
const (
	idleGrowth = 30   // GOGC where that is within the share: the least
	share      = 0.10 // of the process's CPU time
	spareCores = 0.02 // cores that collection may take in any case: an idle process does little else

	smallRoom      = 256 << 20 // garbage that a heap may have which is smaller than that …
	smallRoomShare = 16        // … and at most this part of the memory

	halfTime = 5 * time.Second // of pace
)

// account is what the runtime has counted since the process began.
type account struct {
	at                  time.Time
	cycles              uint64  // collections, those that were asked for included
	automatic           uint64  // … of which the runtime began by itself
	live                uint64  // bytes, at the last collection
	allocated           uint64  // bytes
	held                uint64  // bytes of the heap that the system has not got back
	beside              uint64  // bytes that the runtime holds beside the heap
	collecting, working float64 // CPU seconds, at the last collection
}

var accountNames = []string{
	"/gc/cycles/total:gc-cycles", "/gc/cycles/automatic:gc-cycles", "/gc/heap/live:bytes", "/gc/heap/allocs:bytes",
	"/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
	"/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes", "/memory/classes/heap/free:bytes",
	"/cpu/classes/gc/total:cpu-seconds", "/cpu/classes/user:cpu-seconds",
}

func readAccount() account {
	samples := make([]metrics.Sample, len(accountNames))
	for i, name := range accountNames {
		samples[i].Name = name
	}
	metrics.Read(samples)
	n := func(i int) uint64 { return samples[i].Value.Uint64() }
	heap := n(6) + n(7) + n(8)
	return account{
		at: time.Now(), cycles: n(0), automatic: n(1), live: n(2), allocated: n(3),
		held: heap, beside: n(4) - min(n(4), n(5)+heap),
		collecting: samples[9].Value.Float64(), working: samples[10].Value.Float64(),
	}
}

// pace is how fast the process makes garbage, how much it works, and what collection costs it,
// as far as that was lately so. It is pure arithmetic.
type pace struct {
	half time.Duration // the time in which what was measured counts half

	last, counted account // the newest one, and the newest one after another collection

	allocated, during                 float64 // bytes, seconds
	collecting, working, marked, span float64 // CPU seconds, CPU seconds, bytes, seconds
}

func newPace(now account, half time.Duration) pace { return pace{half: half, last: now, counted: now} }

// observe takes a later account. The runtime counts CPU time at collections only.
func (p *pace) observe(now account) {
	passed := now.at.Sub(p.last.at)
	if passed <= 0 {
		return
	}
	old := p.fading(passed)
	p.allocated = p.allocated*old + float64(now.allocated-p.last.allocated)
	p.during = p.during*old + passed.Seconds()
	p.last = now
	if now.cycles == p.counted.cycles {
		return
	}
	passed = now.at.Sub(p.counted.at)
	old = p.fading(passed)
	p.collecting = p.collecting*old + now.collecting - p.counted.collecting
	p.working = p.working*old + max(0, now.working-p.counted.working)
	p.marked = p.marked*old + float64(now.cycles-p.counted.cycles)*float64(now.live)
	p.span = p.span*old + passed.Seconds()
	p.counted = now
}

// fading is the weight of what is that old.
func (p *pace) fading(age time.Duration) float64 {
	return math.Exp2(-age.Seconds() / p.half.Seconds())
}

// cost is the CPU time of a collection, in seconds.
func (p *pace) cost() float64 {
	if p.marked == 0 {
		return 0
	}
	return p.collecting / p.marked * float64(p.last.live)
}

// room is how much garbage, in bytes, the heap may have: the least with which collection is
// within its share, and at most what the memory allows.
func (p *pace) room(usable uint64) uint64 {
	live := float64(p.last.live)
	least, most := live*idleGrowth/100, float64(mostRoom(p.last.live, usable))
	if p.during == 0 || p.span == 0 {
		return uint64(least)
	}
	budget := max(share/(1-share)*p.working/p.span, spareCores) // cores
	wanted := p.allocated / p.during * p.cost() / budget
	return uint64(max(least, min(wanted, most)))
}

// mostRoom is how much garbage a heap may have of which live bytes live, in a process that may
// use so much memory: as much as lives, or smallRoom, and no more than half of what is left of
// half of the memory.
func mostRoom(live, usable uint64) uint64 {
	room := max(live, min(smallRoom, usable/smallRoomShare))
	return min(room, (usable/2-min(live, usable/2))/2)
}

// growth is GOGC for so much room.
func growth(live, room uint64) int {
	return int(max(idleGrowth, min(room*100/max(live, 1), 1000)))
}

const (
	returnPart  = 4        // memory goes back when more than this part …
	returnLeast = 48 << 20 // … and more than this is held beyond what the heap may have
)

// excessive reports whether the heap holds so much more than it may have, by a part and by at
// least so many bytes, that its return to the system is worth a collection.
func excessive(held, live, room, least uint64) bool {
	wanted := live + room
	return held > wanted+max(wanted/returnPart, least)
}
