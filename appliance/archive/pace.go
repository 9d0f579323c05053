package archive

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pace is how many bytes may be written before they go to the disk. Writes that gather in
	// memory are flushed together with the next fsync of etcd's log, which then takes seconds.
	pace = 1 << 20
	// rest is the longest pause after a flush, which is otherwise as long as the flush was.
	// Without one, the file system commits etcd's log together with the next piece.
	rest = 5 * time.Millisecond
	// freed is how many bytes Free gives back at a time. A file system that tells the disk which
	// blocks are free (discard) does so in the commit for which etcd's log waits.
	freed = 16 << 20
)

// Paced is a writer to a file that flushes each piece to the disk, so that a process which
// waits for the same disk never waits for long, drops it from the page cache, and rests. Meanwhile
// the caller prepares the next piece. An error may come with a later Write, or with Close.
type Paced struct {
	f     *os.File
	piece []byte // being filled
	full  chan []byte
	done  chan written
	err   error // what Write has returned
}

// written is a piece that has been written, and can be filled again.
type written struct {
	piece []byte
	err   error // of this piece, or of one before
}

// NewPaced returns a writer to f. The caller closes both.
func NewPaced(f *os.File) *Paced {
	p := &Paced{f: f, piece: make([]byte, 0, pace), full: make(chan []byte), done: make(chan written, 2)}
	p.done <- written{make([]byte, 0, pace), nil}
	go p.run()
	return p
}

func (p *Paced) Write(data []byte) (n int, err error) {
	for len(data) > 0 && p.err == nil {
		k := min(len(data), pace-len(p.piece))
		p.piece, data, n = append(p.piece, data[:k]...), data[k:], n+k
		if len(p.piece) == pace {
			p.full <- p.piece
			last := <-p.done
			p.piece, p.err = last.piece, last.err
		}
	}
	return n, p.err
}

// Close writes what is left, and returns when all is on the disk. It leaves the file open. An error
// that a Write has returned is not returned again.
func (p *Paced) Close() (err error) {
	if p.full == nil {
		return nil
	}
	p.full <- p.piece
	close(p.full)
	for last := range p.done {
		err = last.err
	}
	p.full = nil
	if p.err != nil || err != nil {
		if p.err != nil {
			err = nil
		}
		return err
	}
	return p.f.Sync()
}

// run writes the pieces until Close. After an error it writes none.
func (p *Paced) run() {
	defer close(p.done)
	var err error
	at := int64(0)
	for piece := range p.full {
		if err == nil {
			err = p.flush(piece, at)
		}
		at += int64(len(piece))
		p.done <- written{piece[:0], err}
	}
}

func (p *Paced) flush(piece []byte, at int64) error {
	if _, err := p.f.Write(piece); err != nil {
		return err
	}
	begun := time.Now()
	if err := unix.Fdatasync(int(p.f.Fd())); err != nil {
		return err
	}
	_ = unix.Fadvise(int(p.f.Fd()), at, int64(len(piece)), unix.FADV_DONTNEED) // advice only
	time.Sleep(min(time.Since(begun), rest))
	return nil
}

// Remove deletes a file, and gives back its room as Free does.
func Remove(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return os.Remove(path) // of a file that this user may delete and not write, for example
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return err
	}
	Free(f)
	return nil
}

// Free gives back the room of a file whose name was deleted, piece by piece, with a rest after
// each. If the file has another name, or another process reads it, it does nothing.
func Free(f *os.File) {
	var is unix.Stat_t
	fd := int(f.Fd())
	if err := unix.Fstat(fd, &is); err != nil || is.Mode&unix.S_IFMT != unix.S_IFREG || is.Nlink > 0 {
		return
	}
	// The kernel gives this lease only where no other descriptor of the file is open (fcntl(2)).
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return
	}
	for size := is.Size - freed; size > 0; size -= freed {
		begun := time.Now()
		if err := errors.Join(unix.Ftruncate(fd, size), unix.Fdatasync(fd)); err != nil {
			return
		}
		time.Sleep(min(time.Since(begun), rest))
	}
}
