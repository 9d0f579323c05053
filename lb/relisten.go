package lb

import (
	"cmp"
	"errors"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// A reload may change Config.Listen. All new listeners are opened before the configuration
// is put in force, and the removed ones are closed after it, so that a reload is refused
// as a whole or not at all, and an address that stays is served throughout. The socket of
// an address that stays is never touched.
//
// An address may overlap one that it replaces, such as 10.0.1.48:6443 and :6443. The kernel
// lets both listen for the moment if both have SO_REUSEPORT, and gives new clients to the
// narrower one.

// relistening is a change of the listeners that is prepared. Only apply or undo may follow.
// The zero value changes nothing.
type relistening struct {
	s      *Server
	all    []*listener // in the order of the new configuration
	opened []*listener // those of all that are new
	gone   []*listener // the present ones that are not in all
	shared []*listener // those with SO_REUSEPORT, for the time of the change
}

// relisten opens the listeners of cfg that are not open. The error joins all reasons why one
// is not, and then none has been opened. The caller holds changing.
func (s *Server) relisten(cfg Config) (*relistening, error) {
	if slices.Equal(s.cfg.Load().ListenAddresses(), cfg.ListenAddresses()) {
		return &relistening{}, nil
	}
	if !s.listening || s.handover.now.Load() {
		return nil, &Problem{Field: "Listen", Text: "cannot change while kthwd starts, stops or hands over to a new process", Hint: "reload again afterwards"}
	}
	r := &relistening{s: s}
	err := r.open(cfg)
	if err != nil {
		r.undo()
	}
	return r, err
}

func (r *relistening) open(cfg Config) error {
	addresses := cfg.ListenAddresses()
	r.gone = slices.Clone(r.s.listeners)
	names := map[string]*listener{}
	for _, l := range r.s.listeners {
		if slices.Contains(addresses, l.address) {
			names[l.address] = l
			r.gone = slices.DeleteFunc(r.gone, func(other *listener) bool { return other == l })
		}
	}
	free := slices.Clone(r.gone) // of those, the sockets that another spelling may have
	var errs []error
	for _, address := range addresses {
		l := names[address]
		if l == nil {
			at := slices.IndexFunc(free, func(l *listener) bool { return respelled(address, l) })
			var err error
			if at >= 0 {
				l, err = free[at].clone()
				free = slices.Delete(free, at, at+1)
			} else {
				l, err = r.listen(address, cfg)
			}
			if err != nil {
				errs = append(errs, listenError(address, err))
				continue
			}
			l.account = r.s.accountOf(address)
			r.opened = append(r.opened, l)
		}
		r.all = append(r.all, l)
	}
	for _, l := range free {
		if l.service {
			errs = append(errs, &Problem{Field: "Listen", Text: "lacks " + l.address + ", on which the service manager listens: clients would connect, and nobody would serve them", Hint: "change the socket unit as well, then restart both"})
		}
	}
	return errors.Join(errs...)
}

// respelled reports whether the address is that of l in another spelling.
func respelled(address string, l *listener) bool {
	a, errA := listenAddress(address)
	b, errB := listenAddress(l.address)
	return errA == nil && errB == nil && a.Port() == b.Port() && a.Addr().Unmap() == b.Addr().Unmap() && (!a.Addr().IsUnspecified() || Network(address) == Network(l.address))
}

// listen opens a listener, beside those that it replaces if they are in the way.
func (r *relistening) listen(address string, cfg Config) (*listener, error) {
	ln, err := openListener(address, cfg.Freebind, false)
	beside := errors.Is(err, unix.EADDRINUSE) && r.share(address)
	if beside {
		ln, err = openListener(address, cfg.Freebind, true)
	}
	if err != nil {
		return nil, err
	}
	l, err := newListener(ln, deferAccept(cfg.FirstByteTimeout))
	if beside && err == nil {
		r.shared = append(r.shared, l)
	}
	return l, err
}

// share gives SO_REUSEPORT to the listeners that go and have the port of the address; false
// if there is none.
func (r *relistening) share(address string) (any bool) {
	want, err := listenAddress(address)
	if err != nil {
		return false
	}
	for _, l := range r.gone {
		if at, ok := l.addr.(*net.TCPAddr); ok && at.AddrPort().Port() == want.Port() && !l.service {
			any = setInt(l.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) == 0 || any
			r.shared = append(r.shared, l)
		}
	}
	return any
}

// clone is a second descriptor of the same socket, for the same address in another spelling.
func (l *listener) clone() (*listener, error) {
	fd, err := unix.FcntlInt(uintptr(l.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &listener{fd: int32(fd), addr: l.addr, defers: l.defers, service: l.service}, nil
}

// undo closes what was opened. After apply it does nothing.
func (r *relistening) undo() {
	r.unshare()
	for _, l := range r.opened {
		l.close()
	}
	*r = relistening{}
}

// apply makes the loops accept from the new listeners, and closes the others.
func (r *relistening) apply() {
	s := r.s
	if s == nil {
		return
	}
	s.setListeners(r.all)
	for _, l := range s.loops {
		l.call(func() { l.listenOn(r.all) })
	}
	for _, l := range s.loops { // after this, no loop has an event of a removed listener in hand
		l.call(func() {
			for _, ln := range r.gone {
				l.acceptWaiting(ln)
			}
		})
	}
	r.unshare()
	for _, l := range r.gone {
		l.close()
		s.log.Info("no longer listening", "address", l.address, "connections", l.active.Load())
	}
	for _, l := range r.opened {
		s.log.Info("listening", "address", l.address)
	}
	s.renameUpgradeSocket()
	*r = relistening{}
}

// unshare takes SO_REUSEPORT back while all are open, so that no other program can share
// their ports.
func (r *relistening) unshare() {
	for _, l := range r.shared {
		setInt(l.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 0)
	}
}

// renameUpgradeSocket opens the upgrade socket anew if its name has changed. If that fails,
// awaitSuccessor tries again.
func (s *Server) renameUpgradeSocket() {
	s.mu.Lock()
	defer s.mu.Unlock()
	present := cmp.Or(s.renamed, s.upgrades)
	if present == nil || present.Addr().String() == s.upgradeSocket().Name {
		return
	}
	present.Close()
	s.renamed = nil
	if ln, err := s.listenForSuccessor(); err == nil {
		s.renamed = ln
	}
	if s.upgrades != nil {
		s.upgrades.Close() // then awaitSuccessor serves the other one
	}
}

// listenOn makes the loop accept from these listeners only. It accepts first the clients that
// wait at another one.
func (l *loop) listenOn(all []*listener) {
	for _, ln := range l.listeners {
		if !slices.Contains(all, ln) {
			l.acceptWaiting(ln)
		}
	}
	accepting, again := l.accepting, l.acceptAgain
	l.stopAccepting()
	l.listeners = all
	if accepting {
		l.startAccepting()
	}
	l.acceptAgain = again
}

// acceptWaiting accepts the clients that wait at a listener that is about to be closed, at
// most as many as the kernel's queue usually holds.
func (l *loop) acceptWaiting(ln *listener) {
	for rounds, before := 0, -1; l.accepting && before < len(l.newcomers) && rounds < 4096/acceptBatch; rounds++ {
		before = len(l.newcomers)
		l.accept(ln)
	}
}

// setListeners puts listeners in force, without the loops.
func (s *Server) setListeners(all []*listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range all {
		if !slices.Contains(s.accounts, l.account) {
			l.index = len(s.accounts)
			s.accounts = append(s.accounts, l.account)
		}
	}
	for _, b := range s.backends {
		b.widen(len(s.accounts))
	}
	s.listeners = all
}

// accountOf returns the account of an address that was listened on before, or a new one,
// which setListeners adds to the others.
func (s *Server) accountOf(address string) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.accounts {
		if a.address == address {
			return a
		}
	}
	return &account{address: address, durations: newDurations(address)}
}

// accountsInUse returns those of the listeners, in their order, then those of removed ones
// that have connections. The caller holds the lock.
func (s *Server) accountsInUse() (all []*account) {
	for _, l := range s.listeners {
		all = append(all, l.account)
	}
	for _, a := range s.accounts {
		if a.active.Load() > 0 && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// listensOn reports whether the account is that of a listener. The caller holds the lock.
func (s *Server) listensOn(a *account) bool {
	return slices.ContainsFunc(s.listeners, func(l *listener) bool { return l.account == a })
}
