package health

import (
	"maps"
	"sync"
	"time"
)

// stats holds counters since New, for the metrics.
type stats struct {
	Requests      map[int]uint64 // answered requests by status code; malformed ones are not counted
	Probes        uint64         // ended probes, of /readyz and /livez together
	ProbeFailures uint64         // ended probes without a 200
	LastProbe     time.Duration  // duration of the latest probe
	LastProbeAt   time.Time      // start of the latest probe; zero before the first
	Cut           uint64         // connections closed to make room for others
}

// stats returns a copy of the counters. It may be called at any time.
func (b *Bridge) stats() stats {
	s := b.count.snapshot()
	s.Cut = b.conns.Cuts()
	return s
}

// counters is stats with a lock.
type counters struct {
	mu sync.Mutex
	s  stats
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

func (c *counters) snapshot() stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.s
	s.Requests = maps.Clone(s.Requests)
	return s
}
