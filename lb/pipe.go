package lb

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bulk data is spliced: it goes from socket to socket through a pipe and is
// never copied to user space. A pipe belongs to a pair only while something is
// in it, so that idle connections hold none, and an unprivileged process, which
// gets few large pipes, does not run out.

const (
	bulkReads = 2         // full reads in a row after which a stream is bulk
	mostPipes = 16        // of a loop at one time; the streams beyond are copied, so slow readers do not hold more
	pipeSize  = 1 << 20   // what fs.pipe-max-size allows by default
	sparePipe = 8         // kept by each loop
	pipeChunk = 512 << 10 // one splice; a pipe's buffers are pages, and not all are full
)

type pipe struct {
	r, w int32
	full int // bytes in it
}

// pipes are a loop's spare ones.
type pipes struct {
	spare []*pipe
	made  int  // those that are in use included
	none  bool // only small ones can be made: copy
}

// ready makes sure that there is a spare one.
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

// errSmallPipe is what a user meets who has had a share of large pipes
// (fs.pipe-user-pages-soft). A small one is worse than copying.
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

// put takes a pipe back, or closes it when something is in it.
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

// canSplice tells whether there is a pipe for a stream that has become bulk.
func (l *loop) canSplice(src *end) bool {
	if l.pipes.ready() {
		return true
	}
	src.bulk = 0
	return false
}

// splice moves bulk data once. It is false when this way is blocked or the pair
// has ended. An end or an error of the stream is left for copy to find.
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

// drainPipe writes what is in the pipe, and gives the pipe back once it is
// empty. It is false when something is left or the pair has ended.
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
			l.broke(p, dst)
			return false
		default:
			pipe.full -= n
		}
	}
	dst.pipe = nil
	l.pipes.put(pipe)
	return true
}
