package lb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/lb/check"
)

// files is the content of the files named by a Config.
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

// Reload applies a new configuration. It closes no connection: those to a removed
// backend may last for DrainTimeout, and those to a removed listener for as long as they
// like. New listeners are open before the removed ones close. The fields that cannot change
// at run time (UpgradeSocket, DiscoveryKubeconfig, DiscoveryCache) must be unchanged. After
// an error the old configuration is in force, with the old listeners and no new one.
func (s *Server) Reload(cfg Config) error {
	err := s.reload(cfg)
	s.CountReload(err)
	return err
}

// CountReload counts a reload that failed before Reload was called; Reload counts its own.
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
		errs = append(errs, &Problem{Field: "Backends", Text: "is empty, and no backend is discovered yet", Hint: "keep the configured backends until status lists discovered ones"})
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	retireLog, err := s.put(cfg, f)
	retireLog()
	return err
}

// put puts a configuration in force, and its listeners with it. The caller calls retireLog in any
// case.
func (s *Server) put(cfg Config, f *files) (retireLog func(), err error) {
	retireLog = func() {}
	s.changing.Lock()
	defer s.changing.Unlock()
	listeners, err := s.relisten(cfg)
	if err != nil {
		return retireLog, err
	}
	defer listeners.undo()
	if s.cfg.Load().AccessLog != cfg.AccessLog || cfg.AccessLog != "" {
		if retireLog, err = s.reopenAccessLog(cfg.AccessLog); err != nil {
			return retireLog, err
		}
	}
	s.mu.Lock()
	s.install(cfg, f)
	s.mu.Unlock()
	listeners.apply()
	return retireLog, nil
}

func (s *Server) hasDiscovered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.discovered) > 0
}

// SetDiscovered replaces the backends found by discovery. From the first non-empty list
// on, the configured ones are the last resort: they are used while no discovered one is
// ready, so an address that cannot be reached from here replaces nothing. An empty list
// changes nothing: an API server must have answered with it, so the cluster has at least
// one.
func (s *Server) SetDiscovered(backends []string) error {
	names, err := s.usableBackends(s.cfg.Load().ListenAddresses(), backends)
	if err != nil || len(names) == 0 {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discovered = names
	s.fillPool(*s.cfg.Load(), false)
	return nil
}

// usableBackends returns the names of the discovered backends, without this balancer
// itself.
func (s *Server) usableBackends(listen, backends []string) (names []string, err error) {
	for _, b := range backends {
		name, err := normalBackend(b)
		if _, errAddress := netip.ParseAddrPort(name); err == nil {
			err = errAddress
		}
		if err != nil {
			return nil, fmt.Errorf("discovered backend %q %w", b, err)
		}
		if l := ownListener(listen, name); l != "" {
			s.log.Warn("discovered backend left out: it is this load balancer itself", "backend", b, "listen", l)
			continue
		}
		if !slices.Contains(names, name) { // EndpointSlices may list one twice
			names = append(names, name)
		}
	}
	return names, nil
}

// install puts cfg in force. The caller holds the lock.
func (s *Server) install(cfg Config, f *files) {
	old := s.cfg.Load()
	changed := old == nil || checksDiffer(*old, cfg) || !sameFiles(s.files, f)
	s.cfg.Store(&cfg)
	s.files = f
	set := settingsOf(cfg)
	set.proxied = cfg.proxiedSince(old)
	s.set.Store(set)
	limit, by := connectionLimit(cfg.MaxConnections, max(len(cfg.Backends), len(s.discovered), len(s.backends)))
	s.limit.Store(limit)
	s.limitBy.Store(int32(by))
	s.fillPool(cfg, changed)
}

// checksDiffer reports whether a and b check backends differently.
func checksDiffer(a, b Config) bool {
	return a.Check != b.Check || a.CheckPath != b.CheckPath || a.CheckInterval != b.CheckInterval || a.CheckTimeout != b.CheckTimeout ||
		a.CheckFall != b.CheckFall || a.CheckRise != b.CheckRise || a.BackendName != b.BackendName ||
		!slices.Equal(a.Sources, b.Sources)
}

func sameFiles(a, b *files) bool {
	if a == nil || (a.roots == nil) != (b.roots == nil) || (a.certificate == nil) != (b.certificate == nil) {
		return false
	}
	sameRoots := a.roots == nil || a.roots.Equal(b.roots)
	sameCert := a.certificate == nil || slices.EqualFunc(a.certificate.Certificate, b.certificate.Certificate, slices.Equal)
	return sameRoots && sameCert
}

// connectionLimit is the most clients at one time, and where that comes from. Each client takes two descriptors,
// and for a moment a second attempt may take a third. The checks of a backend keep one.
func connectionLimit(configured, backends int) (int64, limitKind) {
	spare := int64(64 + backends) // listeners, checks, logs, pipes
	limit := int64(1<<20-1) / 2
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil && r.Cur < 1<<20 {
		limit = max(1, (int64(r.Cur)-spare)/2)
	}
	if configured > 0 && int64(configured) <= limit {
		return int64(configured), limitConnections
	}
	return limit, limitDescriptors
}

// fillPool rebuilds the pool: it keeps backends that stay, starts new ones, and drains
// the others.
func (s *Server) fillPool(cfg Config, checksChanged bool) {
	s.follow(cfg)
	answered := s.answered() // the members below have these answers
	before := s.pool.Load().backends
	var after []*Backend
	for _, m := range s.members(cfg) {
		after = append(after, s.enlist(m, cfg, checksChanged))
	}
	s.pool.Store(newPool(cfg.Balance, after))
	for _, f := range answered {
		f.inPool.Store(true)
	}
	for _, b := range s.backends {
		switch {
		case slices.Contains(after, b):
		case b.is.name != "" && slices.ContainsFunc(s.followed(), func(f *followed) bool { return f.place == b.is.name }):
			if slices.Contains(before, b) {
				s.leave(b, cfg.DrainTimeout)
			}
		case b.leaving, slices.Contains(before, b):
			s.remove(b, cfg.DrainTimeout)
		}
	}
	s.notifyWatcher()
}

// enlist returns the backend of a member: the present one, one that was draining, or a new
// one.
func (s *Server) enlist(m member, cfg Config, checksChanged bool) *Backend {
	at := slices.IndexFunc(s.backends, func(b *Backend) bool { return b.at == m.at })
	if at >= 0 && s.draining[s.backends[at]] != nil && !s.revive(s.backends[at]) {
		at = -1
	}
	if at < 0 {
		b := s.newBackend(m)
		b.start(cfg, s.files)
		s.backends = append(s.backends, b)
		return b
	}
	b := s.backends[at]
	stale := checksChanged || b.stop == nil || b.is.serverName != m.serverName
	b.configure(m)
	if stale {
		b.end()
		b.start(cfg, s.files)
	}
	return b
}

// end stops the checks of b.
func (b *Backend) end() {
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
}

// remove drains a backend: its connections may last for the time after, then they are
// cut.
func (s *Server) remove(b *Backend, after time.Duration) {
	b.end()
	b.leaving = false
	if timer := s.draining[b]; timer != nil {
		timer.Stop()
	}
	s.log.Info("backend removed", "backend", b.name, "connections", b.active.Load(), "drain-timeout", after)
	s.draining[b] = time.AfterFunc(after, func() {
		b.drained.Store(true)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.onEachLoop(func(l *loop) { l.doom(b, endRemoved) })
		s.dropBackend(b)
	})
}

// leave drains a backend whose name no longer has its address. DNS may well answer with
// other addresses each time, so its connections last for as long as they like, and it is
// checked meanwhile, in case it dies.
func (s *Server) leave(b *Backend, again time.Duration) {
	again = max(again, time.Second)
	b.leaving = true
	s.log.Info("address no longer in DNS", "backend", b.name, "name", b.is.name, "connections", b.active.Load())
	s.draining[b] = time.AfterFunc(again, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch timer := s.draining[b]; {
		case !b.leaving || timer == nil || s.stopped:
		case b.active.Load()+b.connecting.Load() > 0:
			timer.Reset(again)
		default:
			b.end()
			s.dropBackend(b)
		}
	})
}

// dropBackend removes a drained backend from the server. The caller holds the lock.
func (s *Server) dropBackend(b *Backend) {
	delete(s.draining, b)
	if slices.Contains(s.backends, b) {
		s.metrics.gone.add(b)
	}
	s.backends = slices.DeleteFunc(s.backends, func(other *Backend) bool { return other == b })
}

// revive returns a draining backend to service. It returns false if its drain time has just
// ended.
func (s *Server) revive(b *Backend) bool {
	if !s.draining[b].Stop() && !b.leaving {
		s.dropBackend(b)
		return false
	}
	delete(s.draining, b)
	b.leaving = false
	s.log.Info("removed backend is back", "backend", b.name)
	return true
}

func (s *Server) stopBackends() {
	s.mu.Lock()
	s.stopped = true
	for _, f := range s.followed() {
		f.end()
	}
	for _, t := range s.draining {
		t.Stop()
	}
	for _, b := range s.backends {
		b.end()
	}
	s.mu.Unlock()
	s.following.Wait()
}

// watched returns the backends in the pool, and those that leave it but are still checked.
func (s *Server) watched() []*Backend {
	all := s.pool.Load().backends
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := range s.draining {
		if b.leaving {
			all = append(slices.Clip(all), b)
		}
	}
	return all
}

// notifyWatcher makes watchBackends examine the backends again.
func (s *Server) notifyWatcher() {
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

// killDelay is how long a backend may be dead, while it still accepts connections but
// answers none, before its connections are cut: it may be suspended only.
var killDelay = 5 * time.Second // a variable for tests

// watchBackends cuts the connections of dead backends once another backend is ready to
// take them, and makes held clients try again when a backend may answer.
func (s *Server) watchBackends(ctx context.Context) {
	cut := map[*Backend]bool{}
	failOpen := false
	for {
		wait := s.cutDead(cut)
		if s.heldNow.Load() > 0 && s.bestTier() < tierBad {
			s.onEachLoop(func(l *loop) { l.releaseHeld() })
		}
		if open := s.lacksPassing(); open != failOpen {
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

// onEachLoop makes every loop run f, without waiting for it.
func (s *Server) onEachLoop(f func(*loop)) {
	for _, l := range s.loops {
		l.post(func() { f(l) })
	}
}

func (s *Server) logFailOpen(open bool) {
	if open {
		s.log.Warn("no backend is ready: new connections go to any backend that might answer")
	} else {
		s.log.Info("a backend passes its checks again")
	}
}

// failsOpen reports whether no backend passes its checks, so that any backend is used.
func (s *Server) failsOpen() bool { return len(s.pool.Load().choices) > 0 && s.lacksPassing() }

// lacksPassing reports whether no backend is ready, and none passes its checks while it is
// held down.
func (s *Server) lacksPassing() bool {
	return s.bestTier() > tierReady && !slices.ContainsFunc(s.pool.Load().choices, (*Backend).heldDown)
}

// heldDown reports whether b passes its checks and is held down.
func (b *Backend) heldDown() bool {
	return b.tier.Load() == tierHopeful && b.checker.Load().Status().Held
}

// preferred reports whether b is chosen before those that fail their checks: it is ready, or
// none is and it is held down.
func (b *Backend) preferred() bool {
	return b.tier.Load() == tierReady || b.heldDown() && b.s.bestTier() == tierHopeful
}

func (s *Server) bestTier() int32 {
	best := tierBad
	for _, b := range s.pool.Load().choices {
		best = min(best, b.tier.Load())
	}
	return best
}

// cutDead cuts the connections of dead backends and returns the time until it must run
// again; 0 for none. It also cuts connections that went to a dead backend because no
// better one was left.
func (s *Server) cutDead(cut map[*Backend]bool) (wait time.Duration) {
	for _, b := range s.watched() {
		st := b.status.Load()
		left := untilCut(st, s.cfg.Load().Cut)
		switch {
		case left < 0:
			if cut[b] {
				delete(cut, b)
				s.onEachLoop(func(l *loop) { l.reprieve(b) })
			}
			continue
		case s.bestTier() > tierReady:
			continue
		case left == 0: // repeatedly: a client may still be connecting to it, or be on its way between loops
			if left = s.spared(b, st); left > 0 {
				break
			}
			b.delivers.Store(false)
			s.cutBackend(b, cut)
			left = time.Second
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return wait
}

// untilCut returns the time until the connections of a dead backend are cut, and less than 0
// for a backend that is not dead, or whose connections are not to be cut.
func untilCut(st *check.Status, which string) time.Duration {
	switch {
	case st == nil || st.State != check.Dead || !st.Suspect: // held down, but alive
		return -1
	case which == CutNever, which == CutUnreachable && st.Connectable:
		return -1
	case !st.Connectable && !st.Leaving: // one that leaves ends its requests before its connections
		return 0
	}
	return max(0, killDelay-time.Since(st.Since))
}

// cutBackend cuts the connections of a dead backend, and logs that once.
func (s *Server) cutBackend(b *Backend, cut map[*Backend]bool) {
	active := b.active.Load()
	if active == 0 {
		return
	}
	if !cut[b] {
		s.log.Warn("cutting the connections of a dead backend", "backend", b.name, "connections", active)
	}
	cut[b] = true
	s.onEachLoop(func(l *loop) { l.doom(b, endDead) })
}
