package lb

import (
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
			s.runs(time.Now())
		}
	}()
	return s
})

// shortestStall is longer than the kernel lets a process wait on a machine that is merely
// busy.
const shortestStall = 200 * time.Millisecond

func (s *stalls) runs(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.last) > shortestStall {
		s.all = append(s.all, stall{s.last, now})
	}
	s.last = now
}

// between returns how much of the time between two moments the process did not run.
func (s *stalls) between(from, to time.Time) (sum time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range append(s.all[:len(s.all):len(s.all)], stall{s.last, time.Now()}) {
		begun, ended := x.from, x.to
		if begun.Before(from) {
			begun = from
		}
		if ended.After(to) {
			ended = to
		}
		if length := ended.Sub(begun); x.to.Sub(x.from) > shortestStall && length > 0 {
			sum += length
		}
	}
	return sum
}

// sinceBut returns the time since a moment without the stalls in it.
func (s *stalls) sinceBut(moment time.Time) time.Duration {
	now := time.Now()
	return now.Sub(moment) - s.between(moment, now)
}
