package lb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// listener is one listening socket. The loops accept from it (accept.go).
type listener struct {
	*account
	fd      int32
	addr    net.Addr
	defers  int64 // nanoseconds that a silent client has already waited when it is accepted
	service bool  // the service manager has the socket, too, and keeps it
	once    sync.Once
}

// account has the counters of one address that is or was listened on. They stay when a
// reload removes the address, for the connections that it leaves and for its return.
type account struct {
	address   string               // as configured
	index     int                  // position in Server.accounts
	durations prometheus.Histogram // how long connections last

	_        cpu.CacheLinePad
	active   atomic.Int64
	accepted atomic.Uint64
	rejected [len(rejectNames)]atomic.Uint64
	errors   [len(acceptErrorNames)]atomic.Uint64
}

// deferAccept is how long the kernel holds back a silent client (TCP_DEFER_ACCEPT,
// tcp(7)): part of the client's time for its first byte. The kernel counts in
// retransmissions of its SYN-ACK, after 1 s and 3 s.
func deferAccept(firstByte time.Duration) time.Duration {
	switch {
	case firstByte >= 6*time.Second:
		return 3 * time.Second
	case firstByte >= 2*time.Second:
		return time.Second
	}
	return 0
}

// Network returns the network of ADDRESS:PORT for package net: the family that is written
// is the family that is listened on, and no address is both. Package net itself takes
// 0.0.0.0 for both.
func Network(address string) string {
	host, _, err := net.SplitHostPort(address)
	a, errAddress := netip.ParseAddr(host)
	switch {
	case err != nil || errAddress != nil:
		return "tcp"
	case a.Unmap().Is4():
		return "tcp4"
	}
	return "tcp6"
}

// openListener opens a listening socket; with free, also on an address that the machine
// does not have yet (IP_FREEBIND of ip(7), which serves IPv6, too); with beside, also
// where sockets with that option listen on an address that overlaps (SO_REUSEPORT of
// socket(7)).
func openListener(address string, free, beside bool) (*net.TCPListener, error) {
	lc := net.ListenConfig{KeepAlive: -1} // see keepAliveOptions
	lc.SetMultipathTCP(false)
	lc.Control = func(_, _ string, c syscall.RawConn) error {
		var errs []error
		control := c.Control(func(fd uintptr) {
			if free {
				errs = append(errs, unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1))
			}
			if beside {
				errs = append(errs, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
			}
		})
		return errors.Join(append(errs, control)...)
	}
	ln, err := lc.Listen(context.Background(), Network(address), address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// away says why nothing can reach an address that is listened on before the machine has it, or
// returns "". An address that another machine has at the moment comes to an interface that has
// its family; one of the wrong family never comes.
func away(address string, here []netip.Addr) string {
	at, err := listenAddress(address)
	if err != nil || at.Addr().IsUnspecified() || at.Addr().IsLoopback() {
		return ""
	}
	is4 := at.Addr().Unmap().Is4()
	if slices.ContainsFunc(here, func(a netip.Addr) bool { return a.Is4() == is4 && !a.IsLoopback() }) {
		return ""
	}
	return "address not here: no interface has " + map[bool]string{true: "IPv4", false: "IPv6"}[is4]
}

// newListener converts ln, which it closes, to a bare descriptor outside Go's poller.
func newListener(ln *net.TCPListener, defers time.Duration) (*listener, error) {
	defer ln.Close()
	raw, err := ln.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &listener{addr: ln.Addr(), defers: int64(defers)}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var n int
		if n, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); failed == nil {
			l.fd = int32(n)
			if failed = l.prepare(); failed != nil {
				l.close()
			}
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, err
	}
	return l, nil
}

// prepare sets the options that accepted connections inherit, which saves the
// system calls per connection.
//
// Keep-alive itself is off, because a short connection does not need the work of its
// timer (tcp_create_openreq_child); keepAlive turns it on later.
//
// Without TCP_QUICKACK the kernel delays an acknowledgement, for 40 ms at most, so that
// it may travel with an answer; later in a connection it does so anyway. Together with
// the same option for backends this saves three packets of twenty for a request on its
// own connection. HAProxy has the options tcp-smart-accept and tcp-smart-connect for it.
//
// The balancer works without any of these options, so one that the socket's protocol lacks is
// left out: a socket from the service manager may be of Multipath TCP.
func (l *listener) prepare() error {
	options := append([]socketOption{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, int32(time.Duration(l.defers) / time.Second)},
		{unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0}, // an inherited socket may have it on
	}, keepAliveOptions...)
	for _, o := range options {
		switch errno := setInt(l.fd, o.level, o.name, o.value); {
		case errno == unix.ENOPROTOOPT || errno == unix.EOPNOTSUPP:
			if o.level == unix.IPPROTO_TCP && o.name == unix.TCP_DEFER_ACCEPT {
				l.defers = 0
			}
		case errno != 0:
			return os.NewSyscallError("setsockopt", errno)
		}
	}
	return nil
}

// close closes the socket. No loop may be watching it.
func (l *listener) close() { l.once.Do(func() { closeFD(l.fd) }) }

// silentUntil is the time at which a client accepted at born is closed if it has sent
// nothing.
func (l *listener) silentUntil(born, firstByte int64) int64 {
	return born + max(firstByte-l.defers, int64(100*time.Millisecond))
}

// traffic counts the bytes, from clients and to clients, that one loop moved between one
// listener and one backend. Loops count at each read, so each counter has its own cache
// line.
type traffic struct {
	received, sent atomic.Uint64
	_              cpu.CacheLinePad
}

func (t *traffic) count(fromClient bool, n int) {
	if fromClient {
		t.received.Add(uint64(n))
	} else {
		t.sent.Add(uint64(n))
	}
}

// arrivals are the clients that a loop accepted in one go, on their way through
// tcpproxy to the target. These bare descriptors pass as one connection, so that
// tcpproxy's cost per connection (a goroutine, a buffer) arises once for all of them.
// tcpproxy reads nothing from it, because the route always matches
// (tcpproxy.go:fixedTarget).
type arrivals struct {
	net.Conn // nil: it cannot be read or written
	loop     *loop
	clients  []arrival
}

type arrival struct {
	listener *listener
	fd       int32
	peer     netip.AddrPort
}

func (a arrival) pair() *pair { return &pair{client: newEnd(a.fd), listener: a.listener, peer: a.peer} }

// Close implements net.Conn.
func (a *arrivals) Close() error {
	for _, c := range a.clients {
		closeFD(c.fd)
	}
	return nil
}

// RemoteAddr implements net.Conn.
func (a *arrivals) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(a.clients[0].peer) }

// LocalAddr implements net.Conn.
func (a *arrivals) LocalAddr() net.Addr { return a.clients[0].listener.addr }

type rejectReason uint8

const (
	rejectPerSource rejectReason = iota
	rejectNoBackend
	rejectFirstByte
	rejectSilent
	rejectError
	rejectHeader
)

var rejectNames = [...]string{"per_source", "no_backend", "first_byte_timeout", "closed_silently", "error", "proxy_header"}

type acceptError uint8

const (
	acceptEMFILE acceptError = iota
	acceptENFILE
	acceptENOBUFS
	acceptOther
	acceptLimit
)

var acceptErrorNames = [...]string{"emfile", "enfile", "enobufs", "other", "max_conns"}

// acceptErrorOf classifies an error of accept. A shortage requires a pause; the other
// errors concern one connection, which is gone already (accept(2)).
func acceptErrorOf(errno syscall.Errno) (_ acceptError, wait bool) {
	switch errno {
	case unix.EMFILE:
		return acceptEMFILE, true
	case unix.ENFILE:
		return acceptENFILE, true
	case unix.ENOBUFS, unix.ENOMEM:
		return acceptENOBUFS, true
	case unix.ECONNABORTED, unix.EINTR, unix.EPERM, unix.ENETDOWN, unix.EPROTO, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.ENONET, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		return acceptOther, false
	}
	return acceptOther, true
}

// listenError adds to an error of listening on an address the address, the reason where the
// kernel's word needs one, and advice.
func listenError(address string, err error) error {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		err = sys.Err
	}
	at, _ := listenAddress(address)
	ip := at.Addr().Unmap()
	f := listenFailure{address: address, err: err}
	switch zone := ip.Zone(); {
	case zone != "" && noInterface(zone):
		f.why, f.hint = "there is no interface "+zone, "ip link lists the interfaces of this machine"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		f.why = "no interface has " + ip.String()
		f.hint = "freebind: true lets kthwd listen before the address comes, such as one that keepalived brings; ip address lists those of this machine"
	case errors.Is(err, unix.EINVAL) && ip.Is6() && ip.IsLinkLocalUnicast() && zone == "":
		f.why, f.hint = "an address of one link needs the interface", fmt.Sprintf("such as [%s%%eth0]:%d", ip, at.Port())
	case errors.Is(err, unix.EAFNOSUPPORT):
		f.why, f.hint = "this machine has no IPv6", "listen on an IPv4 address, or take ipv6.disable=1 from the kernel's command line"
	case errors.Is(err, unix.EACCES):
		f.hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE; or choose others with --listen"
	default:
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	return &f
}

func noInterface(name string) bool {
	_, err := net.InterfaceByName(name)
	return err != nil
}

// listenFailure is an error of listening with advice.
type listenFailure struct {
	address, why, hint string
	err                error
}

func (f *listenFailure) Error() string {
	if f.why == "" {
		return fmt.Sprintf("listen on %s: %v", f.address, f.err)
	}
	return fmt.Sprintf("listen on %s: %s: %v", f.address, f.why, f.err)
}

// Unwrap returns the kernel's error.
func (f *listenFailure) Unwrap() error { return f.err }

// Hint is one line that tells a person what to do (appliance/advice).
func (f *listenFailure) Hint() string { return f.hint }
