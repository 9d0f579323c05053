package lb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/lb/check"
)

// files are what a Config names, read.
type files struct {
	roots       *x509.CertPool
	certificate *tls.Certificate
}

func readFiles(c Config) (*files, error) {
	f := &files{}
	var errs []error
	if c.BackendCA != "" {
		pem, err := os.ReadFile(c.BackendCA)
		f.roots = x509.NewCertPool()
		if err == nil && !f.roots.AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s: no certificate in it", c.BackendCA)
		}
		if err != nil {
			errs = append(errs, &Problem{Field: "BackendCA", Text: err.Error(), Hint: "want the PEM file of the CA that signed the API servers' certificates, such as ca.pem"})
		}
	}
	if c.CheckCert != "" && c.CheckKey != "" {
		pair, err := tls.LoadX509KeyPair(c.CheckCert, c.CheckKey)
		if err != nil {
			errs = append(errs, &Problem{Field: "CheckCert", Text: fmt.Sprintf("%s with %s: %v", c.CheckCert, c.CheckKey, err)})
		}
		f.certificate = &pair
	}
	return f, errors.Join(errs...)
}

// Reload puts a new configuration in place; no connection is closed by it:
// those to a backend that is gone may go on for its DrainTimeout. What cannot
// change at run time (Listen, UpgradeSocket, what discovery reads) must be as it
// was. On an error nothing has changed.
func (s *Server) Reload(cfg Config) error {
	err := s.reload(cfg)
	s.CountReload(err)
	return err
}

// CountReload counts a reload that failed before it came here; Reload counts its own.
func (s *Server) CountReload(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.reloads[0]++
		return
	}
	s.reloads[1]++
	s.lastReload = time.Now()
}

func (s *Server) reload(cfg Config) error {
	f, err := readFiles(cfg)
	errs := []error{cfg.Validate(), err}
	old := s.cfg.Load()
	const hint = "restart kthwd for that; an upgrade keeps the connections"
	if !slices.Equal(old.Listen, cfg.Listen) {
		errs = append(errs, &Problem{Field: "Listen", Text: "cannot change while kthwd runs", Hint: hint})
	}
	for _, fixed := range []struct{ field, old, new string }{
		{"UpgradeSocket", old.UpgradeSocket, cfg.UpgradeSocket},
		{"DiscoveryKubeconfig", old.DiscoveryKubeconfig, cfg.DiscoveryKubeconfig},
		{"DiscoveryCache", old.DiscoveryCache, cfg.DiscoveryCache},
	} {
		if fixed.old != fixed.new {
			errs = append(errs, &Problem{Field: fixed.field, Text: "cannot change while kthwd runs", Hint: hint})
		}
	}
	if len(cfg.Backends) == 0 && len(old.Backends) > 0 && !s.hasDiscovered() {
		errs = append(errs, &Problem{Field: "Backends", Text: "is empty, and nothing is discovered yet", Hint: "leave them in until status lists discovered ones"})
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if old.AccessLog != cfg.AccessLog || cfg.AccessLog != "" {
		if err := s.reopenAccessLog(cfg.AccessLog); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(cfg, f)
	return nil
}

func (s *Server) hasDiscovered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.discovered) > 0
}

// SetDiscovered replaces the backends that discovery has found. From the first
// list that is not empty they are used instead of the static ones; an empty list
// changes nothing, for a cluster has an API server as long as somebody tells so.
func (s *Server) SetDiscovered(backends []string) error {
	names, err := s.usable(s.cfg.Load().Listen, backends)
	if err != nil || len(names) == 0 {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discovered = names
	s.fill(*s.cfg.Load(), false)
	return nil
}

// usable are the discovered backends by their names, but for ourselves.
func (s *Server) usable(listen, backends []string) (names []string, err error) {
	for _, b := range backends {
		name, err := normalBackend(b)
		if err != nil {
			return nil, fmt.Errorf("discovered backend %q %w", b, err)
		}
		if l := ownListener(listen, name); l != "" {
			s.log.Warn("discovered backend left out: it is this load balancer itself", "backend", b, "listen", l)
			continue
		}
		if !slices.Contains(names, name) { // an EndpointSlice may name one twice
			names = append(names, name)
		}
	}
	return names, nil
}

// put makes cfg what holds. The caller has the lock, or is New.
func (s *Server) put(cfg Config, f *files) {
	old := s.cfg.Load()
	changed := old == nil || checksDiffer(*old, cfg) || !sameFiles(s.files, f)
	s.cfg.Store(&cfg)
	s.files = f
	s.set.Store(settingsOf(cfg))
	s.limit.Store(connectionLimit(cfg.MaxConnections))
	s.fill(cfg, changed)
}

// checksDiffer tells whether backends must be checked in another way.
func checksDiffer(a, b Config) bool {
	return a.Check != b.Check || a.CheckPath != b.CheckPath || a.CheckInterval != b.CheckInterval || a.CheckTimeout != b.CheckTimeout ||
		a.CheckFall != b.CheckFall || a.CheckRise != b.CheckRise || a.BackendName != b.BackendName
}

func sameFiles(a, b *files) bool {
	if a == nil || (a.roots == nil) != (b.roots == nil) || (a.certificate == nil) != (b.certificate == nil) {
		return false
	}
	sameRoots := a.roots == nil || a.roots.Equal(b.roots)
	sameCert := a.certificate == nil || slices.EqualFunc(a.certificate.Certificate, b.certificate.Certificate, slices.Equal)
	return sameRoots && sameCert
}

// connectionLimit is how many clients there may be: each takes two descriptors,
// and a second attempt may take a third for a moment.
func connectionLimit(configured int) int64 {
	const spare = 64 // listeners, checks, logs, pipes
	limit := int64(1<<20-1) / 2
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil && r.Cur < 1<<20 {
		limit = max(1, (int64(r.Cur)-spare)/2)
	}
	if configured > 0 {
		limit = min(limit, int64(configured))
	}
	return limit
}

// fill makes the pool anew: backends that stay are kept as they are, new ones
// are started, and those that are gone drain.
func (s *Server) fill(cfg Config, checksChanged bool) {
	names := s.discovered
	discovered := len(names) > 0
	if !discovered {
		for _, b := range cfg.Backends {
			name, _ := normalBackend(b)
			names = append(names, name)
		}
	}
	before := s.pool.Load().backends
	after := &pool{balance: cfg.Balance}
	for _, name := range names {
		at := slices.IndexFunc(before, func(b *Backend) bool { return b.name == name })
		if at < 0 {
			if b := s.revive(name, cfg); b != nil {
				b.discovered = discovered
				after.backends = append(after.backends, b)
				continue
			}
		}
		switch {
		case at < 0:
			b := s.newBackend(name, discovered)
			b.start(cfg, s.files)
			s.backends = append(s.backends, b)
			after.backends = append(after.backends, b)
			continue
		case checksChanged:
			before[at].stop()
			before[at].start(cfg, s.files)
		}
		before[at].discovered = discovered
		after.backends = append(after.backends, before[at])
	}
	s.pool.Store(after)
	for _, b := range before {
		if !slices.Contains(after.backends, b) {
			s.remove(b, cfg.DrainTimeout)
		}
	}
	s.poke()
}

// remove lets the connections of a backend that is gone from the configuration
// go on for a while, and then cuts them.
func (s *Server) remove(b *Backend, after time.Duration) {
	b.stop()
	s.log.Info("backend removed", "backend", b.name, "connections", b.active.Load(), "drain-timeout", after)
	s.draining[b] = time.AfterFunc(after, func() {
		b.drained.Store(true)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.each(func(l *loop) { l.doom(b, endRemoved) })
		s.forget(b)
	})
}

func (s *Server) forget(b *Backend) {
	delete(s.draining, b)
	s.backends = slices.DeleteFunc(s.backends, func(other *Backend) bool { return other == b })
}

// revive takes a removal back that is not over yet.
func (s *Server) revive(name string, cfg Config) *Backend {
	for b, timer := range s.draining {
		switch {
		case b.name != name:
		case timer.Stop():
			delete(s.draining, b)
			b.discovered = len(s.discovered) > 0
			b.start(cfg, s.files)
			s.log.Info("removed backend is back", "backend", name)
			return b
		default: // its time is over just now
			s.forget(b)
		}
	}
	return nil
}

func (s *Server) stopBackends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.draining {
		t.Stop()
	}
	for _, b := range s.backends {
		b.stop()
	}
}

// poke has watchBackends look again.
func (s *Server) poke() {
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

// killDelay is how long a backend that still takes connections, but answers
// none, may be dead before its connections are cut: it may only be suspended.
var killDelay = 5 * time.Second // a variable for tests

// watchBackends cuts the connections of dead backends, once another backend is
// ready to take them, and lets held clients try when there is hope.
func (s *Server) watchBackends(ctx context.Context) {
	cut := map[*Backend]bool{}
	failOpen := false
	for {
		wait := s.cutDead(cut)
		if s.heldNow.Load() > 0 && s.bestTier() <= tierDoubted {
			s.each(func(l *loop) { l.releaseHeld() })
		}
		if open := s.bestTier() > tierReady; open != failOpen {
			failOpen = open
			s.logFailOpen(open)
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.changes:
		case <-due:
		}
	}
}

// each has every loop do f, without waiting for it.
func (s *Server) each(f func(*loop)) {
	for _, l := range s.loops {
		l.post(func() { f(l) })
	}
}

func (s *Server) logFailOpen(open bool) {
	if open {
		s.log.Warn("no backend is ready: new connections go wherever one might be answered")
	} else {
		s.log.Info("a backend is ready again")
	}
}

// failsOpen tells whether no backend is ready, so that any is used.
func (s *Server) failsOpen() bool { return len(s.pool.Load().backends) > 0 && s.bestTier() > tierReady }

func (s *Server) bestTier() int32 {
	best := tierBad
	for _, b := range s.pool.Load().backends {
		best = min(best, b.tier.Load())
	}
	return best
}

// cutDead returns when it wants to look again at the latest; 0 for never. What
// is connected to a dead backend because none was better is cut as well.
func (s *Server) cutDead(cut map[*Backend]bool) (wait time.Duration) {
	for _, b := range s.pool.Load().backends {
		st := b.status.Load()
		if st == nil || st.State != check.Dead || !st.Suspect { // held down, but alive
			if cut[b] {
				delete(cut, b)
				s.each(func(l *loop) { l.reprieve(b) })
			}
			continue
		}
		left := killDelay - time.Since(st.Since)
		if !st.Connectable || left < 0 {
			left = 0
		}
		switch {
		case s.bestTier() > tierReady:
			left = 0
		case left == 0: // again and again: one may be connecting to it still
			if !cut[b] && b.active.Load() > 0 {
				s.log.Warn("cutting the connections of a dead backend", "backend", b.name, "connections", b.active.Load())
			}
			if b.active.Load() > 0 {
				cut[b] = true
				s.each(func(l *loop) { l.doom(b, endDead) })
			}
			left = time.Second
		}
		if left > 0 && (wait == 0 || left < wait) {
			wait = left
		}
	}
	return wait
}
