package lb

import (
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
)

// The tiers of backends for a new connection. A backend of a worse tier is chosen only
// when no better one is left, so the balancer fails open: while any backend might
// answer, no client is refused.
const (
	tierReady   int32 = iota // checks pass
	tierHopeful              // not checked yet, or checks have not passed for long enough
	tierDoubted              // the last check failed, or the backend answered that it is not ready
	tierBad                  // the backend does not answer
)

// pool holds the backends for new connections. It is never changed, only replaced.
type pool struct {
	backends []*Backend
	balance  string
}

// choose picks a backend that is not in tried; nil when none is left.
func (s *Server) choose(client netip.Addr, tried []*Backend) *Backend {
	p := s.pool.Load()
	best := tierBad + 1
	for _, b := range p.backends {
		if t := b.tier.Load(); t < best && !slices.Contains(tried, b) {
			best = t
		}
	}
	if best > tierBad {
		return nil
	}
	usable := func(b *Backend) bool { return b.tier.Load() <= best && !slices.Contains(tried, b) }
	var chosen *Backend
	switch p.balance {
	case RoundRobin:
		chosen = s.roundRobin(p, usable)
	case SourceHash:
		chosen = sourceHash(p, client, usable)
	case FirstAlive:
		chosen = first(p, usable)
	default:
		chosen = s.leastConnections(p, usable)
	}
	if chosen == nil { // tiers have just changed; any backend is better than none
		chosen = first(p, func(b *Backend) bool { return !slices.Contains(tried, b) })
	}
	return chosen
}

func first(p *pool, usable func(*Backend) bool) *Backend {
	for _, b := range p.backends {
		if usable(b) {
			return b
		}
	}
	return nil
}

func (s *Server) roundRobin(p *pool, usable func(*Backend) bool) *Backend {
	n := len(p.backends)
	for range n {
		if b := p.backends[int(s.turn.Add(1)%uint64(n))]; usable(b) {
			return b
		}
	}
	return nil
}

// leastConnections counts established connections and attempts. Backends with equal
// counts take turns. During its slow start a backend is counted higher than it is.
func (s *Server) leastConnections(p *pool, usable func(*Backend) bool) (chosen *Backend) {
	least := math.Inf(1)
	n := len(p.backends)
	start := int(s.turn.Add(1) % uint64(n))
	now := s.clock()
	for i := range n {
		b := p.backends[(start+i)%n]
		if !usable(b) {
			continue
		}
		if load := float64(b.active.Load()+b.connecting.Load()+1) / b.share(now); load < least {
			chosen, least = b, load
		}
	}
	return chosen
}

// sourceHash gives a client the same backend for as long as that backend is usable
// (rendezvous hashing: when a backend leaves, only its own clients move).
func sourceHash(p *pool, client netip.Addr, usable func(*Backend) bool) (chosen *Backend) {
	var most uint64
	address := client.As16()
	for _, b := range p.backends {
		if !usable(b) {
			continue
		}
		h := fnv.New64a()
		h.Write(address[:])
		h.Write([]byte(b.name))
		if score := mix(h.Sum64()); chosen == nil || score > most {
			chosen, most = b, score
		}
	}
	return chosen
}

// mix spreads a hash whose inputs differ in few bits (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
