package benchlb

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The exchange of all measurements but bulk: a request of requestSize bytes and a response
// of responseSize bytes. The first byte of the first request on a connection is the kind
// of the connection.
const (
	requestSize  = 100
	responseSize = 1024

	kindExchange = 'R'
	kindBulk     = 'B' // the backend sends endlessly
)

// loop is an epoll instance of one thread. Its system calls give no notice to Go's
// scheduler, which has nothing else to run here, so that the endpoints cost as little as
// a C program.
type loop struct {
	fd     int
	events [512]unix.EpollEvent
}

func newLoop() (*loop, error) {
	runtime.LockOSThread()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1) // nothing is allocated, and a collection could not stop this thread
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &loop{fd: fd}, err
}

func (l *loop) add(fd int, events uint32) error {
	return l.control(unix.EPOLL_CTL_ADD, fd, events)
}

func (l *loop) modify(fd int, events uint32) error {
	return l.control(unix.EPOLL_CTL_MOD, fd, events)
}

func (l *loop) control(op, fd int, events uint32) error {
	event := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(l.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&event)), 0, 0)
	return failure(e)
}

// wait waits for events; forever when timeout is negative.
func (l *loop) wait(timeout time.Duration) ([]unix.EpollEvent, error) {
	var limit *unix.Timespec
	if timeout >= 0 {
		ts := unix.NsecToTimespec(int64(timeout))
		limit = &ts
	}
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.fd), uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)), uintptr(unsafe.Pointer(limit)), 0, 0)
	if e == unix.EINTR {
		return nil, nil
	}
	if e != 0 {
		return nil, fmt.Errorf("epoll_pwait2: %w", e)
	}
	return l.events[:n], nil
}

func failure(e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

func read(fd int, p []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return int(n), failure(e)
}

func write(fd int, p []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	return int(n), failure(e)
}

// discard removes up to n bytes from a socket without copying them.
func discard(fd, n int) (int, error) {
	got, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC, 0, 0)
	return int(got), failure(e)
}

func accept(fd int) (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int(n), failure(e)
}

func closeFD(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func again(err error) bool { return errors.Is(err, unix.EAGAIN) }

// address is an IPv4 address in the kernel's form.
func address(s string) (*unix.RawSockaddrInet4, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	raw := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	port := (*[2]byte)(unsafe.Pointer(&raw.Port))
	port[0], port[1] = byte(a.Port()>>8), byte(a.Port())
	return raw, nil
}

// connect starts to connect a new socket. On loopback the handshake is complete when it
// returns, and the first write succeeds.
func connect(to *unix.RawSockaddrInet4) (int, error) {
	fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if e != 0 {
		return -1, fmt.Errorf("socket: %w", e)
	}
	_, _, e = unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
	if e != 0 && e != unix.EINPROGRESS {
		closeFD(int(fd))
		return -1, fmt.Errorf("connect: %w", e)
	}
	return int(fd), nil
}

func listen(at string) (int, error) {
	a, err := netip.ParseAddrPort(at)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// Accepted sockets inherit TCP_NODELAY.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); err != nil {
		return -1, fmt.Errorf("bind %s: %w", at, err)
	}
	return fd, unix.Listen(fd, 65535)
}
