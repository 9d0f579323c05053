package lb

import (
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// reserve holds descriptors for connections to backends. Without it, accepted clients
// would take the last descriptors during a shortage, and then all of them would wait for
// a backend that cannot be connected to. The loops accept only while the reserve is
// whole, so that every accepted client can be served.
type reserve struct {
	s       *Server
	missing atomic.Int32

	mu  sync.Mutex
	fds []int
}

// whole refills the reserve. It returns false while that is impossible, except when no
// client is connected: then no descriptor would ever be returned.
func (r *reserve) whole() bool {
	if r.missing.Load() == 0 {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.missing.Load() > 0 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return r.s.active.Load() == 0
		}
		r.fds = append(r.fds, fd)
		r.missing.Add(-1)
	}
	return true
}

// socket opens a socket in place of a reserved descriptor.
func (r *reserve) socket(family uint16) (int32, syscall.Errno) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := len(r.fds) - 1
	if last < 0 {
		return -1, unix.EMFILE
	}
	unix.Close(r.fds[last])
	r.fds = r.fds[:last]
	r.missing.Add(1)
	return streamSocket(family)
}

func (r *reserve) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	closeAll(r.fds)
	r.missing.Add(int32(len(r.fds)))
	r.fds = nil
}
