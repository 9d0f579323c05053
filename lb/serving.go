package lb

import (
	"context"
	"time"
)

// serving is whether clients can be served, for those who move an address between
// balancers. It has rise and fall of its own: a balancer that gives its address away at
// each doubt, and takes it back at each hope, cuts all clients each time.
type serving struct {
	serves bool
	differ time.Time // since when the present finding differs from serves; zero when it does not
}

const (
	servingTick = 100 * time.Millisecond
	servingFall = 500 * time.Millisecond // the checks have counted their own fall before
	servingRise = 2 * time.Second
)

// see applies a finding.
func (v *serving) see(can bool, now time.Time) {
	if can == v.serves {
		v.differ = time.Time{}
		return
	}
	if v.differ.IsZero() {
		v.differ = now
	}
	if lasted := now.Sub(v.differ); can && lasted >= servingRise || !can && lasted >= servingFall {
		v.serves, v.differ = can, time.Time{}
	}
}

// watchServing follows whether clients can be served, until ctx ends. The first finding
// counts at once.
func (s *Server) watchServing(ctx context.Context) {
	tick := time.NewTicker(servingTick)
	defer tick.Stop()
	s.mu.Lock()
	s.serving.serves = s.canServe()
	s.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		s.serving.see(s.canServe(), time.Now())
		s.mu.Unlock()
	}
}

// canServe reports whether some backend may answer a client.
func (s *Server) canServe() bool { return s.bestTier() < tierBad }
