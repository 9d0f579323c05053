package lb

import (
	"slices"
	"sync"
	"time"
)

// stalls are the times in which this process did not run, because the whole machine or
// its processors were busy elsewhere. What a row measures contains them, and no balancer
// is to blame for them.
type stalls struct {
	mu   sync.Mutex
	all  []stall
	last time.Time // when the process was last seen to run
}

type stall struct{ from, to time.Time }

// machine has the stalls since its first use.
var machine = sync.OnceValue(func() *stalls {
	s := &stalls{last: time.Now()}
	go func() {
		for range time.Tick(10 * time.Millisecond) {
			s.look()
		}
	}()
	return s
})

// shortestStall leaves out what a merely busy machine does; the rows allow for that.
const shortestStall = 200 * time.Millisecond

// look notes that the process runs.
func (s *stalls) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Sub(s.last) > shortestStall {
		s.all = append(s.all, stall{s.last, now})
	}
	s.last = now
}

// between returns how much of the time between two moments the process did not run.
func (s *stalls) between(from, to time.Time) (sum time.Duration) {
	for _, length := range s.lengths(from, to) {
		sum += length
	}
	return sum
}

// longest returns the longest stall between two moments.
func (s *stalls) longest(from, to time.Time) time.Duration {
	return slices.Max(append(s.lengths(from, to), 0))
}

// lengths returns how long each stall was between two moments.
func (s *stalls) lengths(from, to time.Time) (all []time.Duration) {
	s.look()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.all {
		if length := earlier(x.to, to).Sub(later(x.from, from)); length > 0 {
			all = append(all, length)
		}
	}
	return all
}

// ranSince returns the time since a moment without the stalls in it.
func (s *stalls) ranSince(moment time.Time) time.Duration { return span(moment, time.Now()).ran() }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
