package lb

import (
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// reserve is descriptors that are kept for connections to backends. Without it,
// where descriptors are short, clients that are accepted take the last of them,
// and then all wait for a backend that nobody can connect to. The loops accept
// only while it is whole, so each client that was accepted can be served.
type reserve struct {
	s       *Server
	missing atomic.Int32

	mu  sync.Mutex
	fds []int
}

// whole fills the reserve up. It is false while that is not possible; but where
// nobody is served, nobody will give a descriptor back.
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

// socket makes one in the place of a reserved descriptor.
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
