package refusals

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/lru"
)

// Limits of the join port. A joiner sends two requests, and again each second while it
// has to wait.
const (
	Conns         = 128         // open connections
	refusalsFirst = 5           // refusals that a source gets before it has to wait
	refusalsEvery = time.Second // and from then on, one in this time
	sourcesKept   = 1024        // sources that are remembered; the one that was heard longest ago goes
)

// Limit limits the requests of each source that has been refused. Every request reads
// etcd through the quorum and writes a line to the log, so a source without a token
// must not have many of them. It also bounds guesses at a token.
type Limit struct {
	mu      sync.Mutex
	sources *lru.Cache
}

// source is one address, or the /64 of an IPv6 address, because a machine may have all of
// these.
type source struct {
	refusals *rate.Limiter
	pending  int // requests under way, each of which may be refused
	dropped  int // requests that were not looked at since the last one that was
}

// NewLimit returns a limit for sources that are not known yet.
func NewLimit() *Limit { return &Limit{sources: lru.New(sourcesKept)} }

// Begin admits a request from the remote address, and returns the function that takes its
// result. Without admission done is nil. dropped is the number of requests of the same
// source that were not admitted: since the last admitted one, or including this one.
func (r *Limit) Begin(remote string) (done func(refused bool), dropped int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.source(remote)
	if s.refusals.Tokens()-float64(s.pending) < 1 {
		s.dropped++
		return nil, s.dropped
	}
	dropped, s.dropped = s.dropped, 0
	s.pending++
	return func(refused bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		s.pending--
		if refused {
			s.refusals.Allow()
		}
	}, dropped
}

// source returns the record of an address. The lock is held.
func (r *Limit) source(remote string) *source {
	key := sourceOf(remote)
	if s, ok := r.sources.Get(key); ok {
		return s.(*source)
	}
	s := &source{refusals: rate.NewLimiter(rate.Every(refusalsEvery), refusalsFirst)}
	r.sources.Add(key, s)
	return s
}

func sourceOf(remote string) string {
	h, _, err := net.SplitHostPort(remote)
	if err != nil {
		return remote
	}
	ip, err := netip.ParseAddr(h)
	if err != nil {
		return h
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().String()
	}
	return ip.String()
}
