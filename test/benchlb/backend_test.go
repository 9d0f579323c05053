package benchlb

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// backend answers exchanges and bulk requests on all addresses, in one thread.
type backend struct {
	*loop
	listeners map[int32]bool
	conns     []backendConn // by descriptor
	buffer    [64 << 10]byte
	response  [responseSize]byte
	source    int // a file in memory, the source of bulk data
}

type backendConn struct {
	got     int // bytes of the incomplete request
	started bool
	bulk    bool
}

const bulkSource = 1 << 20

// runBackend is the helper: it prints "ready" and serves until it is killed.
func runBackend(addresses []string) error {
	l, err := newLoop()
	if err != nil {
		return err
	}
	b := &backend{loop: l, listeners: map[int32]bool{}, conns: make([]backendConn, 1<<17)}
	if b.source, err = unix.MemfdCreate("bulk", unix.MFD_CLOEXEC); err != nil {
		return err
	}
	if _, err := unix.Write(b.source, make([]byte, bulkSource)); err != nil {
		return err
	}
	for _, a := range addresses {
		fd, err := listen(a)
		if err != nil {
			return err
		}
		b.listeners[int32(fd)] = true
		if err := b.add(fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	for {
		events, err := b.wait(-1)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := b.handle(e); err != nil {
				return err
			}
		}
	}
}

func (b *backend) handle(e unix.EpollEvent) error {
	fd := int(e.Fd)
	switch c := &b.conns[fd]; {
	case b.listeners[e.Fd]:
		return b.accept(fd)
	case c.bulk:
		b.sendBulk(fd)
		return nil
	default:
		return b.serve(fd, c)
	}
}

func (b *backend) accept(listener int) error {
	fd, err := accept(listener)
	if again(err) || errors.Is(err, unix.ECONNABORTED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	b.conns[fd] = backendConn{}
	return b.add(fd, unix.EPOLLIN)
}

func (b *backend) serve(fd int, c *backendConn) error {
	n, err := read(fd, b.buffer[:])
	if again(err) {
		return nil
	}
	if n <= 0 || err != nil {
		closeFD(fd)
		return nil
	}
	if !c.started {
		c.started = true
		if b.buffer[0] == kindBulk {
			c.bulk = true
			return b.modify(fd, unix.EPOLLOUT)
		}
	}
	for c.got += n; c.got >= requestSize; c.got -= requestSize {
		if n, err := write(fd, b.response[:]); n != responseSize {
			if err == nil || again(err) {
				return errors.Join(fmt.Errorf("%d bytes of a response written", n), err)
			}
			closeFD(fd) // the other end is gone
			return nil
		}
	}
	return nil
}

// sendBulk sends without copying, once: the next event reports room at once if there is
// more, and a balancer that drains as fast as this program sends does not keep it from its
// other connections.
func (b *backend) sendBulk(fd int) {
	offset := int64(0)
	if _, err := unix.Sendfile(fd, b.source, &offset, bulkSource); err != nil && !again(err) {
		closeFD(fd)
	}
}
