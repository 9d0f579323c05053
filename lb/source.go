package lb

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"kthwd/lb/check"
)

// A connection to a backend has a local port, of which an address has some 28 000 towards
// each backend. With several addresses (Config.Sources) there are as many times more.

// sourceAddresses returns the addresses; the configuration is valid.
func (c Config) sourceAddresses() (all []netip.Addr) {
	for _, text := range c.Sources {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// sources returns the addresses in the kernel's form.
func (c Config) sources() (all []*sockaddr) {
	for _, a := range c.sourceAddresses() {
		all = append(all, newSockaddr(netip.AddrPortFrom(a, 0)))
	}
	return all
}

func (v *validator) sources(c Config) {
	for i, text := range c.Sources {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || a.IsUnspecified() || a.IsMulticast():
			v.add("Sources", "%q is no address of a machine", text).Hint = "want an address of this machine without a port, such as 10.0.1.48"
		case !isLocal(a):
			v.add("Sources", "%s is no address of this machine", text).Hint = "ip address lists those"
		case slices.Contains(c.Sources[:i], text):
			v.add("Sources", "%s is given twice", text)
		}
	}
}

// connectFrom is connect from one source after another, until one has a port left. The error is
// check.NoSource when this machine has none of them.
func (s *Server) connectFrom(fd int32, to *sockaddr) (errno syscall.Errno) {
	all := s.settings().sources
	if len(all) == 0 {
		return connect(fd, to)
	}
	start := s.sourceTurn.Add(1)
	gone := false
	errno = unix.EAFNOSUPPORT // no source of the family
	for i := range uint64(len(all)) {
		from := all[(start+i)%uint64(len(all))]
		if from.family() != to.family() {
			continue
		}
		// The port is chosen at the connect, when the destination is known, and so can be
		// in use towards other destinations.
		setInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		bound := bind(fd, from)
		if bound == unix.EADDRNOTAVAIL { // for want of the address, not of a port
			gone = true
			continue
		}
		if errno = bound; bound == 0 {
			errno = connect(fd, to)
		}
		if errno != unix.EADDRNOTAVAIL && errno != unix.EADDRINUSE {
			break
		}
	}
	switch {
	case gone && errno == unix.EAFNOSUPPORT:
		return check.NoSource
	case gone:
		s.reach(limitSource)
	case errno == unix.EAFNOSUPPORT: // the kernel chooses
		return connect(fd, to)
	}
	return errno
}

// hasSource reports whether this machine has an address from which to reach a: without one
// a connect fails with the same error as without a free port. It sends nothing.
func (s *Server) hasSource(a netip.AddrPort) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, unix.EADDRNOTAVAIL)
}
