package lb

import (
	"net"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// proxyHeader returns the PROXY header that precedes the client's bytes; nil when it is
// off. kube-apiserver does not understand it.
func (s *Server) proxyHeader(p *pair) []byte {
	var version byte
	switch s.settings().proxy {
	case ProxyV1:
		version = 1
	case ProxyV2:
		version = 2
	default:
		return nil
	}
	to := localAddr(p.client.fd)
	if p.proxied != nil && p.proxied.to.IsValid() {
		to = net.TCPAddrFromAddrPort(p.proxied.to)
	}
	header := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(p.peer), to)
	b, err := header.Format()
	if err != nil {
		s.log.Debug("no PROXY header", "client", p.peer, "err", err)
		return nil
	}
	return b
}

// localAddr returns the address the client connected to.
func localAddr(fd int32) net.Addr {
	sa, err := unix.Getsockname(int(fd))
	if err != nil {
		return &net.TCPAddr{}
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return &net.TCPAddr{IP: a.Addr[:], Port: a.Port}
	case *unix.SockaddrInet6:
		ip := net.IP(a.Addr[:])
		if four := ip.To4(); four != nil {
			ip = four
		}
		return &net.TCPAddr{IP: ip, Port: a.Port}
	}
	return &net.TCPAddr{}
}
