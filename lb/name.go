package lb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"kthwd/lb/names"
)

// resolveEvery is the interval between look-ups of a name whose servers are all well. While
// one is not, the name is looked up as often as its servers are checked.
const resolveEvery = 10 * time.Second

// leastResolve is the least interval between look-ups.
const leastResolve = 100 * time.Millisecond

// followed is a configured name whose addresses are followed.
type followed struct {
	*names.Name
	place  string // as spec.place returns it
	end    context.CancelFunc
	inPool atomic.Bool // what its first look-up has found is in the pool
}

// follow makes s.names those of cfg. The caller holds the lock.
func (s *Server) follow(cfg Config) {
	before := s.followed()
	var after []*followed
	for _, at := range cfg.specs() {
		if _, address := at.address(); address {
			continue
		}
		i := slices.IndexFunc(before, func(f *followed) bool { return f.place == at.place() })
		if i >= 0 {
			after = append(after, before[i])
			continue
		}
		after = append(after, s.newFollowed(cfg, at))
	}
	s.names.Store(&after)
	for _, f := range before {
		if !slices.Contains(after, f) {
			f.end() // and no wait: it may wait for the lock
		}
	}
}

func (s *Server) newFollowed(cfg Config, at spec) *followed {
	f := &followed{place: at.place()}
	f.Name = names.New(names.Config{
		Host: at.host, Port: at.port,
		Slow: resolveEvery, Fast: min(max(cfg.CheckInterval, leastResolve), resolveEvery),
		Settled: func() bool { return s.settled(f) }, Refuse: s.refuseAddress, Changed: s.nameChanged,
		Resolver: s.o.resolver, Log: s.log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	f.end = cancel
	s.following.Go(func() { f.Run(ctx) })
	return f
}

// followed returns the names in use.
func (s *Server) followed() []*followed {
	if all := s.names.Load(); all != nil {
		return *all
	}
	return nil
}

// refuseAddress refuses an address of this balancer, and one that no backend can have.
func (s *Server) refuseAddress(a netip.AddrPort) error {
	if !connectable(a.Addr()) {
		return errors.New("which is " + notConnectable)
	}
	if l := ownListener(s.cfg.Load().ListenAddresses(), a.String()); l != "" {
		return fmt.Errorf("which is this load balancer itself (it listens on %s)", l)
	}
	return nil
}

// nameChanged puts the new addresses of a name in force.
func (s *Server) nameChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.fillPool(*s.cfg.Load(), false)
	}
}

// settled reports whether every server of a name is ready.
func (s *Server) settled(f *followed) bool {
	some := false
	for _, b := range s.pool.Load().backends {
		if f.Has(b.at) {
			some = true
			if b.tier.Load() != tierReady {
				return false
			}
		}
	}
	return some
}

// hurryNames has the names of a backend looked up soon: it may have moved.
func (s *Server) hurryNames(b *Backend) {
	for _, f := range s.followed() {
		if f.Has(b.at) {
			f.Hurry()
		}
	}
}

// answered returns the names that have had their first answer.
func (s *Server) answered() []*followed {
	return slices.DeleteFunc(slices.Clone(s.followed()), func(f *followed) bool { return !f.Status().Answered })
}

// resolved reports whether every name has had its first answer, and its backends are in the
// pool.
func (s *Server) resolved() bool {
	return !slices.ContainsFunc(s.followed(), func(f *followed) bool { return !f.inPool.Load() })
}

// The classes of backends. Among backends of one tier, the best class is used.
const (
	classPrimary int32 = iota
	classBackup        // configured as backup
	classLast          // configured, while there are discovered ones
	classes
)

// classNames are the classes in status.
var classNames = [classes]string{"", "backup", "last resort"}

// member is a backend that the pool will have.
type member struct {
	at         netip.AddrPort
	name       string // what stands for it in the configuration, where that is a name
	serverName string // name in its certificate
	weight     int
	class      int32
	discovered bool
}

// members returns the discovered backends, then the configured ones, each address once.
func (s *Server) members(cfg Config) (all []member) {
	for _, d := range s.discovered {
		at := netip.MustParseAddrPort(d)
		all = append(all, member{at: at, serverName: at.Addr().WithZone("").String(), weight: normalWeight, discovered: true})
	}
	add := func(m member) {
		at := slices.IndexFunc(all, func(other member) bool { return other.at == m.at })
		switch {
		case at < 0:
			if len(s.discovered) > 0 {
				m.class = classLast
			}
			all = append(all, m)
		case all[at].name == "" && all[at].discovered:
			all[at].name, all[at].serverName, all[at].weight, all[at].class = m.name, m.serverName, m.weight, m.class
		case all[at].name == "":
			all[at].name = m.name
		}
	}
	for _, spec := range cfg.specs() {
		m := member{serverName: spec.host, weight: spec.weight}
		if spec.backup {
			m.class = classBackup
		}
		if a, ok := spec.address(); ok {
			m.at, m.serverName = a, a.Addr().WithZone("").String()
			add(m)
			continue
		}
		m.name = spec.place()
		for _, f := range s.followed() {
			if f.place != m.name {
				continue
			}
			for _, server := range f.Status().Servers {
				add(m.from(server))
			}
		}
	}
	if cfg.BackendName != "" {
		for i := range all {
			all[i].serverName = cfg.BackendName
		}
	}
	return all
}

// from completes m with what a record says about its server.
func (m member) from(server names.Server) member {
	m.at = server.Address
	if server.Weight > 0 && m.weight > 0 {
		m.weight = server.Weight
	}
	if server.Backup {
		m.class = max(m.class, classBackup)
	}
	return m
}
