package lb

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bulk data is spliced: it goes from socket to socket through a pipe and is never copied
// to user space. A pair has a pipe only while data is in it, so that idle connections
// hold none, and an unprivileged process does not run out of its few large pipes.

const (
	bulkReads = 2         // consecutive full reads that make a stream bulk
	mostPipes = 16        // per loop at one time; further streams are copied, so slow readers cannot hold more
	pipeSize  = 1 << 20   // the default of fs.pipe-max-size
	sparePipe = 8         // unused pipes kept by each loop
	pipeChunk = 512 << 10 // one splice; a pipe's buffers are pages, not all of them full
)

type pipe struct {
	r, w int32
	full int // bytes in the pipe
}

// pipes are the spare pipes of a loop.
type pipes struct {
	spare []*pipe
	made  int  // pipes in existence, those in use included
	none  bool // only small pipes can be made, so data is copied
}

// ready reports whether there is a spare pipe, and makes one if necessary.
func (s *pipes) ready() bool {
	if len(s.spare) > 0 {
		return true
	}
	if s.none || s.made >= mostPipes {
		return false
	}
	p, err := newPipe()
	if err != nil {
		s.none = errors.Is(err, errSmallPipe)
		return false
	}
	s.made++
	s.spare = append(s.spare, p)
	return true
}

func (s *pipes) get() *pipe {
	last := len(s.spare) - 1
	p := s.spare[last]
	s.spare = s.spare[:last]
	return p
}

// errSmallPipe means that the user has reached the limit of large pipes
// (fs.pipe-user-pages-soft). A small pipe is worse than copying.
var errSmallPipe = errors.New("only small pipes are left")

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	p := &pipe{r: int32(fds[0]), w: int32(fds[1])}
	if size, err := unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize); err != nil || size < bufferSize {
		p.close()
		return nil, errSmallPipe
	}
	return p, nil
}

// put keeps a pipe as a spare one, or closes it when data is in it or there are enough.
func (s *pipes) put(p *pipe) {
	if p == nil {
		return
	}
	if p.full > 0 || len(s.spare) >= sparePipe {
		p.close()
		s.made--
		s.none = false
		return
	}
	s.spare = append(s.spare, p)
}

func (s *pipes) close() {
	for _, p := range s.spare {
		p.close()
	}
	s.spare = nil
}

func (p *pipe) close() {
	closeFD(p.r)
	closeFD(p.w)
}

// canSplice reports whether there is a pipe for a stream that has become bulk.
func (l *loop) canSplice(src *end) bool {
	if l.pipes.ready() {
		return true
	}
	src.bulk = 0
	return false
}

// splice moves bulk data once. It returns false when this direction is blocked or the
// pair has ended. It leaves the end or an error of the stream to copy.
func (l *loop) splice(p *pair, src, dst *end, count *uint64) bool {
	pipe := l.pipes.get()
	n, errno := splice(src.fd, pipe.w, pipeChunk)
	if errno != 0 || n == 0 {
		l.pipes.put(pipe)
		src.bulk = 0
		src.readable = errno != syscall.EAGAIN || src.fin
		return src.readable
	}
	pipe.full, dst.pipe = n, pipe
	*count += uint64(n)
	p.traffic.count(src == &p.client, n)
	return l.drainPipe(p, dst)
}

// drainPipe writes the data in the pipe and returns the pipe once it is empty. It
// returns false when data is left or the pair has ended.
func (l *loop) drainPipe(p *pair, dst *end) bool {
	pipe := dst.pipe
	for pipe.full > 0 {
		n, errno := splice(pipe.r, dst.fd, pipe.full)
		switch {
		case errno == syscall.EINTR:
		case errno == syscall.EAGAIN:
			l.wantWrite(dst)
			return false
		case errno != 0 || n == 0:
			l.endBroken(p, dst)
			return false
		default:
			pipe.full -= n
		}
	}
	dst.pipe = nil
	l.pipes.put(pipe)
	return true
}
