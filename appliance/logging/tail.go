package logging

import (
	"bytes"
	"regexp"
	"sync"
)

// tailSize is how many bytes of the last lines a Logs keeps.
const tailSize = 256 << 10

// tail keeps the last lines that were written, for a report. Its memory grows with the
// lines, up to tailSize.
type tail struct {
	mu   sync.Mutex
	ring []byte
	next int // where the next byte goes, once the ring is full
}

func (t *tail) add(line []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := min(len(line), tailSize-len(t.ring)); n > 0 {
		t.ring = append(t.ring, line[:n]...)
		line = line[n:]
	}
	for len(line) > 0 {
		n := copy(t.ring[t.next:], line)
		line = line[n:]
		t.next = (t.next + n) % tailSize
	}
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// Tail returns the last lines that were written, at most 256 KiB, oldest first and
// without colours.
func (l *Logs) Tail() []byte {
	l.tail.mu.Lock()
	all := append(bytes.Clone(l.tail.ring[l.tail.next:]), l.tail.ring[:l.tail.next]...)
	full := len(l.tail.ring) == tailSize
	l.tail.mu.Unlock()
	if full { // the first line has lost its beginning
		_, all, _ = bytes.Cut(all, []byte{'\n'})
	}
	return colours.ReplaceAll(all, nil)
}
