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
	tierLeaving              // the backend said that it is about to stop: soon it refuses every request
	tierBad                  // the backend does not answer
)

// pool holds the backends in use. It is never changed, only replaced.
type pool struct {
	backends []*Backend
	choices  []*Backend // those for new connections: without weight 0
	turns    []*Backend // choices, each as often as its weight says
	weighted bool       // weights differ
	balance  string
}

func newPool(balance string, backends []*Backend) *pool {
	p := &pool{balance: balance, backends: backends}
	for _, b := range backends {
		if b.weight.Load() > 0 {
			p.choices = append(p.choices, b)
		}
	}
	p.turns = p.choices
	p.weighted = slices.ContainsFunc(p.choices, func(b *Backend) bool { return b.weight.Load() != p.choices[0].weight.Load() })
	if p.weighted {
		p.turns = turns(p.choices)
	}
	return p
}

// turns returns each backend as often as its weight says, spread evenly: at each step
// every backend gains its weight, and the one that has most goes next and pays for all.
func turns(backends []*Backend) (all []*Backend) {
	sum := int32(0)
	for _, b := range backends {
		sum += b.weight.Load()
	}
	credit := make([]int32, len(backends))
	for range sum {
		next := 0
		for i, b := range backends {
			if credit[i] += b.weight.Load(); credit[i] > credit[next] {
				next = i
			}
		}
		credit[next] -= sum
		all = append(all, backends[next])
	}
	return all
}

// order is the place of b among all for new connections; the lowest is used first.
func (b *Backend) order() int32 { return b.tier.Load()*classes + b.class.Load() }

// choose picks a backend that is not in tried; nil when none is left.
func (s *Server) choose(client netip.Addr, tried []*Backend) *Backend {
	p := s.pool.Load()
	const none = (tierBad + 1) * classes
	best := none
	for _, b := range p.choices {
		if t := b.order(); t < best && !slices.Contains(tried, b) {
			best = t
		}
	}
	if best == none {
		return nil
	}
	usable := func(b *Backend) bool { return b.order() <= best && !slices.Contains(tried, b) }
	if len(tried) > 0 && p.balance != FirstAlive {
		usable = p.otherFamily(tried, usable)
	}
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

// otherFamily narrows usable to the backends of the family, IPv4 or IPv6, that was tried less
// often, if there are some: where one family has no way, the second attempt finds that out, and
// not the last one (RFC 8305 §4). FirstAlive has the order that is configured; of a name's
// addresses the families take turns in it.
func (p *pool) otherFamily(tried []*Backend, usable func(*Backend) bool) func(*Backend) bool {
	four := 0
	for _, b := range tried {
		if b.isFour() {
			four++
		}
	}
	if 2*four == len(tried) {
		return usable
	}
	wantsFour := 2*four < len(tried)
	other := func(b *Backend) bool { return b.isFour() == wantsFour && usable(b) }
	if !slices.ContainsFunc(p.choices, other) {
		return usable
	}
	return other
}

func (b *Backend) isFour() bool { return b.at.Addr().Unmap().Is4() }

func first(p *pool, usable func(*Backend) bool) *Backend {
	for _, b := range p.choices {
		if usable(b) {
			return b
		}
	}
	return nil
}

func (s *Server) roundRobin(p *pool, usable func(*Backend) bool) *Backend {
	n := len(p.turns)
	for range n {
		if b := p.turns[int(s.turn.Add(1)%uint64(n))]; usable(b) {
			return b
		}
	}
	return nil
}

// leastConnections counts established connections and attempts, by weight. Backends with
// equal counts take turns. During its slow start a backend is counted higher than it is.
func (s *Server) leastConnections(p *pool, usable func(*Backend) bool) (chosen *Backend) {
	least := math.Inf(1)
	n := len(p.choices)
	start := int(s.turn.Add(1) % uint64(n))
	now := s.clock()
	for i := range n {
		b := p.choices[(start+i)%n]
		if !usable(b) {
			continue
		}
		if load := float64(b.active.Load()+b.connecting.Load()+1) / (b.share(now) * float64(b.weight.Load())); load < least {
			chosen, least = b, load
		}
	}
	return chosen
}

// sourceHash gives a client the same backend for as long as that backend is usable
// (rendezvous hashing: when a backend leaves, only its own clients move).
func sourceHash(p *pool, client netip.Addr, usable func(*Backend) bool) (chosen *Backend) {
	most := -1.0
	address := client.As16()
	for _, b := range p.choices {
		if !usable(b) {
			continue
		}
		h := fnv.New64a()
		h.Write(address[:])
		h.Write([]byte(b.name))
		if score := scoreOf(mix(h.Sum64()), b.weight.Load()); score > most {
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

// scoreOf weighs a hash: a backend of twice the weight has the highest score twice as often.
func scoreOf(hash uint64, weight int32) float64 {
	part := (float64(hash>>11) + 0.5) / (1 << 53) // between 0 and 1
	return float64(weight) / -math.Log(part)
}
