package lb

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the data path. All are on non-blocking descriptors, so they are
// raw, without notice to the Go scheduler. No other file of the package uses unsafe.

func recv(fd int32, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
	return int(n), errno
}

func send(fd int32, p []byte) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// splice moves up to n bytes between a socket and a pipe, without copying them.
func splice(from, to int32, n int) (int, syscall.Errno) {
	const flags = unix.SPLICE_F_NONBLOCK | unix.SPLICE_F_MOVE
	m, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), flags)
	return int(m), errno
}

// accept accepts one connection. It inherits its socket options from the listener
// (listen.go).
func accept(fd int32) (int32, netip.AddrPort, syscall.Errno) {
	var sa unix.RawSockaddrInet6 // large enough for both families
	size := uint32(unsafe.Sizeof(sa))
	n, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int32(n), sockaddr{raw: sa}.addrPort(), 0
}

// connect starts a connection; it usually returns EINPROGRESS.
func connect(fd int32, to *sockaddr) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), to.size)
	return errno
}

func bind(fd int32, to *sockaddr) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), to.size)
	return errno
}

func streamSocket(family uint16) (int32, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(fd), errno
}

func setInt(fd int32, level, option int, value int32) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return errno
}

// socketError returns and clears the pending error of a socket.
func socketError(fd int32) syscall.Errno {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	if _, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return errno
	}
	return syscall.Errno(value)
}

// shutdownWrite sends FIN.
func shutdownWrite(fd int32) {
	syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0) //nolint:errcheck // a broken socket needs no FIN
}

// resetOnClose makes close send RST and drop unsent data.
func resetOnClose(fd int32) {
	linger := unix.Linger{Onoff: 1}
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
}

func closeFD(fd int32) { syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// watch adds, changes or removes a descriptor of an epoll set, edge-triggered: each
// arrival of data, of a FIN or of room to write is reported once.
func watch(epfd int, op int, fd int32, events uint32) syscall.Errno {
	e := unix.EpollEvent{Events: events | edge, Fd: fd}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

// epollWait is unix.EpollWait without notice to the scheduler, for short waits. It
// returns 0 events with an error, which is usually a signal.
func epollWait(epfd int, events []unix.EpollEvent, ms int) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(ms), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// watchListener is watch for a listening socket: level-triggered, and waking one epoll
// set at a time.
func watchListener(epfd int, op int, fd int32) {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLEXCLUSIVE, Fd: fd}
	syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
}

const edge = unix.EPOLLET & 0xffffffff

// sockaddr is an address in the kernel's form.
type sockaddr struct {
	raw  unix.RawSockaddrInet6 // holds either family: family and port are in the same place
	size uintptr
}

func (s sockaddr) family() uint16 { return s.raw.Family }

func newSockaddr(a netip.AddrPort) *sockaddr {
	port := networkOrder(a.Port())
	if ip := a.Addr().Unmap(); ip.Is4() {
		s := &sockaddr{size: unix.SizeofSockaddrInet4}
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: ip.As4()}
		return s
	}
	return &sockaddr{
		size: unix.SizeofSockaddrInet6,
		raw:  unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: a.Addr().As16(), Scope_id: scopeID(a.Addr().Zone())},
	}
}

// networkOrder converts a port between this machine's byte order and the network's;
// both directions are the same operation.
func networkOrder(port uint16) uint16 {
	var wire [2]byte
	binary.BigEndian.PutUint16(wire[:], port)
	return binary.NativeEndian.Uint16(wire[:])
}

func scopeID(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}

func (s sockaddr) addrPort() netip.AddrPort {
	port := networkOrder(s.raw.Port)
	if s.raw.Family == unix.AF_INET {
		four := *(*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(s.raw.Addr).Unmap(), port)
}
