package health

import (
	"maps"
	"sync"
	"time"
)

// Stats are counters since New, for the metrics page.
type Stats struct {
	Requests      map[int]uint64 // answered, by status code; what is not HTTP is not counted
	Probes        uint64         // that have ended, of /readyz and /livez together
	ProbeFailures uint64         // of those, the ones that were no 200
	LastProbe     time.Duration  // how long the latest took
	LastProbeAt   time.Time      // when it began; zero before the first
	Cut           uint64         // connections closed to make room for others
}

// Stats returns a copy of the counters. It may be called at any time.
func (b *Bridge) Stats() Stats {
	s := b.count.snapshot()
	s.Cut = b.conns.cuts()
	return s
}

// counters is Stats with a lock.
type counters struct {
	mu sync.Mutex
	s  Stats
}

func (c *counters) request(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s.Requests == nil {
		c.s.Requests = map[int]uint64{}
	}
	c.s.Requests[code]++
}

func (c *counters) probe(start time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.Probes++
	if !ok {
		c.s.ProbeFailures++
	}
	c.s.LastProbe, c.s.LastProbeAt = time.Since(start), start
}

func (c *counters) snapshot() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.s
	s.Requests = maps.Clone(s.Requests)
	return s
}
