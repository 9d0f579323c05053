package lb

import (
	"context"
	"time"
)

// A loop keeps what it has accepted, and at low load one accepts nearly all. So
// connections that live for long may come to be busy together on one processor
// while another is idle. Then half of the difference is moved: a pair is whole
// between two events, as in a hand-over to another process.
const (
	balanceEvery = 250 * time.Millisecond
	busyLoop     = 0.7 // of a processor: a loop that has not much more to give
	idleLoop     = 0.5
)

// rebalance looks at the loops until ctx ends.
func (s *Server) rebalance(ctx context.Context) {
	if len(s.loops) < 2 {
		return
	}
	t := time.NewTicker(balanceEvery)
	defer t.Stop()
	last, at := s.busyTimes(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, took := s.busyTimes(), time.Since(at)
		shares, pairs := make([]float64, len(now)), make([]int64, len(now))
		for i := range now {
			shares[i], pairs[i] = float64(now[i]-last[i])/float64(took), s.loops[i].count.Load()
		}
		last, at = now, time.Now()
		if from, to, n := move(shares, pairs); n > 0 {
			s.log.Debug("connections move to a loop that is less busy", "connections", n, "from", from, "to", to)
			s.movePairs(s.loops[from], s.loops[to], n)
		}
	}
}

func (s *Server) busyTimes() (all []int64) {
	for _, l := range s.loops {
		all = append(all, l.busy.Load())
	}
	return all
}

// move decides what to move: n pairs from one loop to another, or none.
func move(shares []float64, pairs []int64) (from, to, n int) {
	for i := range shares {
		if shares[i] > shares[from] {
			from = i
		}
		if shares[i] < shares[to] {
			to = i
		}
	}
	if shares[from] < busyLoop || shares[to] > idleLoop || pairs[from] < pairs[to]+2 {
		return 0, 0, 0
	}
	return from, to, int(pairs[from]-pairs[to]) / 2
}

// movePairs gives n pairs of a loop to another one.
func (s *Server) movePairs(from, to *loop, n int) {
	from.post(func() {
		all := from.letGo(n, settledPair)
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
