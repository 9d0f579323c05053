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

	// A network that is cut off answers nothing, and its silence need not last as long as a
	// check may. A backend whose kernel has not acknowledged a request or answered a SYN for
	// doubtfulSilence, in which both were repeated, makes the others be checked at once, and
	// when all of them have been as silent for deadSilence, none can be reached: some eight
	// packets to each were lost, or their answers. One that is slow but lives is not silent.
	doubtfulSilence = 250 * time.Millisecond
	deadSilence     = 800 * time.Millisecond
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

// silenced applies the finding that no backend gives a sign of life, which has lasted.
func (v *serving) silenced() { v.serves, v.differ = false, time.Time{} }

// watchServing follows whether clients can be served, until ctx ends. The first finding
// counts at once.
func (s *Server) watchServing(ctx context.Context) {
	tick := time.NewTicker(servingTick)
	defer tick.Stop()
	s.mu.Lock()
	s.serving.serves = s.canServe()
	s.mu.Unlock()
	h := hush{woke: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		silent := h.all(s, now)
		s.mu.Lock()
		if silent {
			s.serving.silenced()
		} else {
			s.serving.see(s.canServe(), now)
		}
		s.mu.Unlock()
	}
}

// canServe reports whether some backend may answer a client.
func (s *Server) canServe() bool { return s.bestTier() < tierBad }

// A hush finds out whether all backends are silent. watchServing's goroutine uses it.
type hush struct {
	woke    time.Time // when it last looked
	deaf    time.Time // until then this process did not run, and heard nobody
	hurried bool      // the other backends were checked for the present silence of one
}

// all reports whether every backend that clients may be given is silent, or known to be
// bad.
func (h *hush) all(s *Server, now time.Time) bool {
	if now.Sub(h.woke) > 2*servingTick {
		h.deaf = now
	}
	h.woke = now
	doubt, silent, unknown := false, []*Backend(nil), []*Backend(nil)
	for _, b := range s.pool.Load().choices {
		if b.tier.Load() >= tierBad {
			continue
		}
		unheard := min(b.checker.Load().Unheard(now), now.Sub(h.deaf))
		doubt = doubt || unheard >= doubtfulSilence
		if unheard >= deadSilence {
			silent = append(silent, b)
		} else {
			unknown = append(unknown, b)
		}
	}
	if doubt && !h.hurried {
		for _, b := range unknown {
			b.checker.Load().Hurry()
		}
	}
	h.hurried = doubt
	return len(unknown) == 0 && len(silent) > 0 && !s.heardFrom(silent, now.Add(-deadSilence))
}

// heardFrom reports whether a client's connection to one of the backends has brought data or
// an acknowledgement since a moment.
func (s *Server) heardFrom(all []*Backend, since time.Time) bool {
	for _, b := range all {
		if p := s.proofOf(b); p.data.After(since) || p.ack.After(since) {
			return true
		}
	}
	return false
}
