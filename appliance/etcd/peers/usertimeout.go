package peers

import (
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// unackedTimeout is how long bytes to a peer may stay unacknowledged by its kernel before the
// connection is given up. It is several times etcd's election timeout, so that a packet that
// is lost and sent again ends nothing.
const unackedTimeout = 10 * time.Second

// LimitUnacked makes the kernel give up the present connections of peers that take no more
// bytes, to the addresses at which the member listens for peers. Call it every few seconds. etcd's
// own deadline has no effect on small messages: they fit into the buffer of a dead connection
// for as long as TCP repeats them, a quarter of an hour, and etcd sends them nowhere else
// meanwhile. If only one direction is cut, that costs a quorum that has the other direction.
//
// etcd makes its listener by itself, and for Multipath TCP, as Go's default is: such a listener
// has no option that its connections could inherit. So they are found among the process's
// sockets.
func LimitUnacked(listen []url.URL, log *slog.Logger) {
	listens := peerPorts(listen)
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		log.Debug("connections of peers keep the kernel's timeout", "err", err)
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if err != nil || !slices.Contains(listens, localPort(fd)) {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedTimeout.Milliseconds())); err != nil {
			log.Debug("a peer's connection keeps the kernel's timeout", "err", err)
		}
	}
}

// peerPorts returns the addresses of the URLs, without the zone.
func peerPorts(urls []url.URL) (all []netip.AddrPort) {
	for _, u := range urls {
		if a, err := netip.ParseAddrPort(u.Host); err == nil {
			all = append(all, netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port()))
		}
	}
	return all
}

// localPort returns the local address of a TCP socket, or an invalid one for anything else.
func localPort(fd int) netip.AddrPort {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || kind != unix.IPPROTO_TCP {
		return netip.AddrPort{}
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}
