package etcd

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"sync"
	"time"
)

// copies are the copies of the database that are being made. The zero value is: none.
type copies struct {
	mu    sync.Mutex
	count int
	since time.Time // the first of them; zero for none
}

// begin counts a copy until end is called.
func (c *copies) begin() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count++; c.count == 1 {
		c.since = time.Now()
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.count--; c.count == 0 {
			c.since = time.Time{}
		}
	}
}

// Copying returns since when CopyDatabase runs, as for a backup; zero if it does not.
func (e *Member) Copying() time.Time {
	e.copies.mu.Lock()
	defer e.copies.mu.Unlock()
	return e.copies.since
}

// CopyDatabase writes the database as it is now to w, and then its SHA-256: the bytes of etcd's own
// Snapshot request, whose messages are garbage of several times the size of the database. It
// reads as fast as w writes, and blocks until all is written, w fails or ctx ends. Meanwhile the
// database cannot give back the pages that writers free.
func (e *Member) CopyDatabase(ctx context.Context, w io.Writer) error {
	server := e.Running()
	if server == nil {
		return errors.New("etcd has not started")
	}
	defer e.copies.begin()()
	snapshot := server.Server.Backend().Snapshot()
	sum := sha256.New()
	_, err := snapshot.WriteTo(io.MultiWriter(whileWanted{ctx, w}, sum))
	if err = errors.Join(err, snapshot.Close()); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// whileWanted is a writer that fails after the end of a context.
type whileWanted struct {
	ctx context.Context
	w   io.Writer
}

func (w whileWanted) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}
