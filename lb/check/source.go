package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sources returns the addresses from which the next connection to a backend may come, in the
// order in which they are tried; none leaves it to the kernel.
func (p *prober) sources(to netip.AddrPort) []netip.Addr {
	var all []netip.Addr
	for _, a := range p.cfg.Sources {
		if a.Is4() == to.Addr().Unmap().Is4() {
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		return nil
	}
	first := p.turn % len(all)
	return append(all[first:len(all):len(all)], all[:first]...)
}

// dialFrom connects from one source after another, until one has a port left.
func dialFrom(ctx context.Context, sources []netip.Addr, to netip.AddrPort) (conn net.Conn, err error) {
	d := net.Dialer{KeepAlive: -1} // too short-lived for keep-alive
	if len(sources) == 0 {
		return d.DialContext(ctx, "tcp", to.String())
	}
	d.Control = portAtConnect
	for _, from := range sources {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
		conn, err = d.DialContext(ctx, "tcp", to.String())
		if !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return conn, err
}

// NoSource is the shortage of a machine that no longer has an address of Config.Sources. The
// kernel's own word for it is that for a lack of ports.
const NoSource = syscall.ENODEV

func lacksSource(err error) bool {
	var call *os.SyscallError
	return errors.As(err, &call) && call.Syscall == "bind" && call.Err == syscall.EADDRNOTAVAIL
}

// portAtConnect has the kernel choose the port of a socket at the connect, when the
// destination is known, and not at the bind: so it can be in use towards others.
func portAtConnect(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) // without it there are fewer ports
	})
}
