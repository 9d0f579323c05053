// Package dbcopy reads a whole database of etcd as it was at one moment, as for a backup, and tells
// the state of its store.
package dbcopy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/backend"
)

// Open counts the copies of the database that are being made. The zero value is: none.
type Open struct {
	mu    sync.Mutex
	count int
	since time.Time // the first of them; zero for none
}

// Begin counts a copy until end is called.
func (c *Open) Begin() (end func()) {
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

// Since returns since when there is a copy; zero for none.
func (c *Open) Since() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.since
}

// Copy is a database as it was at one moment. The caller closes it: meanwhile the database cannot
// give back the pages that writers free.
type Copy struct {
	Size  int64 // of what Send writes
	Store Store // its state; the zero value if it is not known

	snapshot backend.Snapshot
	end      func()
}

// NewCopy opens a copy of a backend.
func NewCopy(b backend.Backend) (*Copy, error) {
	c := &Copy{snapshot: b.Snapshot(), end: func() {}}
	c.Size = c.snapshot.Size() + sha256.Size
	// etcd's snapshot is a transaction of bbolt (server/storage/backend/backend.go: snapshot), the
	// only one that sees the same state as Send.
	if tx, ok := c.snapshot.(Buckets); ok {
		var err error
		if c.Store, err = ReadStore(tx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// Send writes the database to w, and then its SHA-256: the bytes of etcd's own Snapshot request,
// whose messages are garbage of several times the size of the database. It reads as fast as w
// writes, and blocks until all is written, w fails or ctx ends.
func (c *Copy) Send(ctx context.Context, w io.Writer) error {
	sum := sha256.New()
	if _, err := c.snapshot.WriteTo(io.MultiWriter(whileWanted{ctx, w}, sum)); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// OnClose calls end when the copy is closed.
func (c *Copy) OnClose(end func()) { c.end = end }

// Close ends the copy. Call it once.
func (c *Copy) Close() error {
	defer c.end()
	return c.snapshot.Close()
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

// Buckets is a transaction of bbolt.
type Buckets interface {
	Bucket(name []byte) *bbolt.Bucket
}

// Store is the state of the store in a database.
type Store struct {
	Revision  int64
	Compacted int64 // -1 if the store was never compacted, as etcd says it
}

// ReadStore reads the state of the store without going through it.
func ReadStore(tx Buckets) (s Store, err error) {
	keys, meta := tx.Bucket([]byte("key")), tx.Bucket([]byte("meta"))
	if keys == nil || meta == nil {
		return s, errors.New("not a database of etcd")
	}
	s.Compacted = -1
	// storage/mvcc/revision.go: the main revision comes first, big endian.
	if last, _ := keys.Cursor().Last(); len(last) >= 8 {
		s.Revision = int64(binary.BigEndian.Uint64(last))
	}
	if c := meta.Get([]byte("finishedCompactRev")); len(c) >= 8 {
		s.Compacted = int64(binary.BigEndian.Uint64(c))
	}
	// As storage/mvcc/kvstore.go:restore does: the last key may be compacted away.
	if c := meta.Get([]byte("scheduledCompactRev")); len(c) >= 8 {
		s.Compacted = max(s.Compacted, int64(binary.BigEndian.Uint64(c)))
	}
	s.Revision = max(s.Revision, s.Compacted, 1)
	return s, nil
}
