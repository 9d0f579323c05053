package lb

import (
	"context"
	"time"
)

// As few loops are in use as can do the work; the others rest. A loop that rests accepts
// nobody, and what is busy of its pairs moves to one that is in use. With 55 000
// requests/s, half of what two processors can do, the balancer adds 25 µs (p50) when
// one loop has all connections and 75 µs when two have them: a loop that is awake
// already answers at once, and the other processor is free for whoever is to be woken.
// When one in use has not much more to give, one more joins.
//
// A pair moves as in a hand-over to another process: it is whole between two events.
// Pairs that nothing has happened to lately stay where they are, for they cost
// nothing anywhere.
const (
	balanceEvery = 100 * time.Millisecond
	busyLoop     = 0.8   // of the time: a loop that has not much more to give
	idleLoop     = 0.5   // one that can take something off it
	packedLoop   = 0.65  // what those that stay would have each if one more rested
	restingLoop  = 0.005 // one that may keep what it has
	calmLooks    = 10    // looks in a row after which one more rests
	moveLooks    = 5     // looks from a move between loops in use to the next
	mostMoved    = 256   // pairs at one time: some milliseconds of two loops
)

// balance is which loops are in use, and what was seen of them.
type balance struct {
	inUse int // the first so many
	calm  int // looks in a row at which fewer would have been enough
	moved int // looks until pairs may move between loops in use again
}

// move is a share of a loop's busy pairs that another one is to have.
type move struct {
	from, to int
	share    float64
}

// look decides what follows from how busy each loop was: how many are in use, and
// what moves.
func (b *balance) look(busy []float64) (moves []move) {
	most, least, total := b.extremes(busy)
	b.moved = max(0, b.moved-1)
	half := func(to int) {
		moves = append(moves, move{most, to, (busy[most] - busy[to]) / 2 / busy[most]})
		b.moved = moveLooks
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
	if b.calm == calmLooks {
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

// extremes are the most and the least busy of the loops in use, and the sum of all.
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

// rebalance looks at the loops until ctx ends.
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
		s.look(&b, busy)
	}
}

// look does what follows from how busy each loop was.
func (s *Server) look(b *balance, busy []float64) {
	moves := b.look(busy)
	s.use(b.inUse)
	for _, m := range moves {
		s.movePairs(s.loops[m.from], s.loops[m.to], m.share)
	}
}

// use has the first n loops accept, and the others rest.
func (s *Server) use(n int) {
	before := int(s.inUse.Swap(int64(n)))
	if before == n {
		return
	}
	s.log.Debug("loops in use", "loops", n, "before", before, "of", len(s.loops))
	for i, l := range s.loops {
		if rests := i >= n; rests != (i >= before) {
			l.post(func() { l.rest(rests) })
		}
	}
}

// rest has the loop accept nobody, or take part again.
func (l *loop) rest(rests bool) {
	l.resting = rests
	if rests {
		l.unlisten()
	} else {
		l.listen()
	}
}

func (s *Server) busyTimes() (all []int64) {
	for _, l := range s.loops {
		all = append(all, l.busy.Load())
	}
	return all
}

// movePairs gives a share of a loop's pairs to another one, of those that something
// has happened to in the last two looks.
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
		all := from.letGo(min(int(share*float64(n)), mostMoved), busy)
		if len(all) == 0 {
			return
		}
		s.log.Debug("connections move to another loop", "connections", len(all), "from", from.index, "to", to.index)
		take := func(l *loop) {
			for _, p := range all {
				l.takeBack(p)
			}
		}
		if !to.post(func() { take(to) }) {
			take(from) // the other one has stopped
		}
	})
}
