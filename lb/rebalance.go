package lb

import (
	"context"
	"time"
)

// The fewest loops that can do the work are in use; the others rest. A resting loop
// accepts no clients, and its busy pairs move to a loop in use. At 55 000 requests/s,
// half of what two processors can do, the balancer adds 25 µs (p50) when one loop has
// all connections and 75 µs when two loops share them: a loop that is awake already
// answers at once, and the other processor is free for the client that is woken. When a
// loop in use is nearly saturated, one more joins.
//
// A pair moves as in a hand-over to another process: between two events it is whole.
// Pairs without recent activity stay where they are, because they cost nothing anywhere.
const (
	balanceEvery = 100 * time.Millisecond
	busyLoop     = 0.8   // share of time: a loop this busy is nearly saturated
	idleLoop     = 0.5   // a loop less busy than this can take pairs from it
	packedLoop   = 0.65  // most load for each remaining loop if one more rested
	restingLoop  = 0.005 // load below which a resting loop keeps its pairs
	calmRounds   = 10    // calm rounds in a row after which one more loop rests
	moveRounds   = 5     // rounds from one move between loops in use to the next
	mostMoved    = 256   // pairs moved at one time: some milliseconds of work for both loops
)

// balance is the state of the decision which loops are in use.
type balance struct {
	inUse int // number of loops in use, from the front
	calm  int // consecutive rounds in which fewer loops would have sufficed
	moved int // rounds until pairs may move between loops in use again
}

// move is the share of one loop's busy pairs that goes to another loop.
type move struct {
	from, to int
	share    float64
}

// decide sets, from how busy each loop was, the number of loops in use, and returns the
// moves between loops.
func (b *balance) decide(busy []float64) (moves []move) {
	most, least, total := b.extremes(busy)
	b.moved = max(0, b.moved-1)
	half := func(to int) {
		moves = append(moves, move{most, to, (busy[most] - busy[to]) / 2 / busy[most]})
		b.moved = moveRounds
	}
	calm := b.inUse > 1 && total <= packedLoop*float64(b.inUse-1)
	switch {
	case busy[most] < busyLoop:
	case busy[least] > idleLoop && b.inUse < len(busy):
		b.inUse++
		half(b.inUse - 1)
	case busy[least] <= idleLoop && b.moved == 0:
		half(least)
	}
	if b.calm++; !calm {
		b.calm = 0
	}
	if b.calm == calmRounds {
		b.calm = 0
		b.inUse--
		_, least, _ = b.extremes(busy)
	}
	for i := b.inUse; i < len(busy); i++ {
		if busy[i] > restingLoop {
			moves = append(moves, move{i, least, 1})
		}
	}
	return moves
}

// extremes returns the most and the least busy loop in use, and the sum over all loops.
func (b *balance) extremes(busy []float64) (most, least int, total float64) {
	for i, share := range busy {
		total += share
		if i >= b.inUse {
			continue
		}
		if share > busy[most] {
			most = i
		}
		if share < busy[least] {
			least = i
		}
	}
	return most, least, total
}

// rebalance measures and redistributes the load of the loops until ctx ends.
func (s *Server) rebalance(ctx context.Context) {
	if len(s.loops) < 2 {
		return
	}
	t := time.NewTicker(s.o.balanceEvery)
	defer t.Stop()
	b := balance{inUse: int(s.inUse.Load())}
	last, at := s.busyTimes(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, took := s.busyTimes(), time.Since(at)
		busy := make([]float64, len(now))
		for i := range now {
			busy[i] = float64(now[i]-last[i]) / float64(took)
		}
		last, at = now, time.Now()
		s.redistribute(&b, busy)
	}
}

// redistribute applies the decision that follows from how busy each loop was.
func (s *Server) redistribute(b *balance, busy []float64) {
	moves := b.decide(busy)
	s.useLoops(b.inUse)
	for _, m := range moves {
		s.movePairs(s.loops[m.from], s.loops[m.to], m.share)
	}
}

// useLoops makes the first n loops accept and the others rest.
func (s *Server) useLoops(n int) {
	before := int(s.inUse.Swap(int64(n)))
	if before == n {
		return
	}
	s.log.Debug("loops in use", "loops", n, "before", before, "of", len(s.loops))
	for i, l := range s.loops {
		if rests := i >= n; rests != (i >= before) {
			l.post(func() { l.setResting(rests) })
		}
	}
}

// setResting makes the loop stop accepting, or accept again.
func (l *loop) setResting(rests bool) {
	l.resting = rests
	if rests {
		l.stopAccepting()
	} else {
		l.startAccepting()
	}
}

func (s *Server) busyTimes() (all []int64) {
	for _, l := range s.loops {
		all = append(all, l.busy.Load())
	}
	return all
}

// movePairs moves a share of a loop's pairs, of those active in the last two rounds, to
// another loop.
func (s *Server) movePairs(from, to *loop, share float64) {
	from.post(func() {
		since := from.now - 2*int64(s.o.balanceEvery)
		busy := func(p *pair) bool { return p.seen >= since && settledPair(p) }
		n := 0
		for _, p := range from.pairs {
			if busy(p) {
				n++
			}
		}
		all := from.detachPairs(min(int(share*float64(n)), mostMoved), busy)
		if len(all) == 0 {
			return
		}
		s.log.Debug("connections move to another loop", "connections", len(all), "from", from.index, "to", to.index)
		take := func(l *loop) {
			for _, p := range all {
				l.attach(p)
			}
		}
		if !to.post(func() { take(to) }) {
			take(from) // the other loop has stopped
		}
	})
}
