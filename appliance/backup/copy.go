package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/archive"
	"kthwd/appliance/backup/workdir"
	"kthwd/appliance/etcd/dbcopy"
)

// Copy is a copy of the running member's database, as etcdctl snapshot save writes it: the
// database, then its SHA-256. It is read once. Until Close the member keeps every page of it.
type Copy struct {
	Size  int64
	Store dbcopy.Store // of the copy; the zero value if it is not known

	io.Reader
	close func() error
}

// NewCopy returns a copy that is read from r; Close closes r.
func NewCopy(r io.ReadCloser, size int64, s dbcopy.Store) *Copy {
	return &Copy{Size: size, Store: s, Reader: r, close: sync.OnceValue(r.Close)}
}

// Close can be called again.
func (c *Copy) Close() error { return c.close() }

// content is the copy as a file of an archive, with the sum at its end compared.
func (c *Copy) content(add func(int64)) io.ReadCloser {
	return io.NopCloser(&content{from: c, sum: newTrailer(sha256.New()), add: add})
}

type content struct {
	from io.Reader
	n    int64
	sum  *trailer
	add  func(int64)
}

func (c *content) Read(p []byte) (n int, err error) {
	n, err = c.from.Read(p)
	_, _ = c.sum.Write(p[:n])
	c.n += int64(n)
	c.add(int64(n))
	switch {
	case errors.Is(err, io.EOF) && !c.sum.right():
		err = fmt.Errorf("copy the database: the %d bytes that came do not have the sum that etcd sent with them", c.n)
	case err != nil && !errors.Is(err, io.EOF):
		err = fmt.Errorf("copy the database: %w", err)
	}
	return n, err
}

// open opens a copy of the running member's database, whose size and store are known.
func (o Options) open(ctx context.Context, client *clientv3.Client, stage *workdir.Dir, add func(int64)) (*Copy, error) {
	var c *Copy
	err := errors.ErrUnsupported
	if o.Database != nil {
		c, err = o.Database(ctx)
	}
	if err == nil && c.Store.Revision > 0 {
		return c, nil
	}
	if err != nil { // a daemon that began with an older kthwd has no copy, or does not say its store
		r, err := client.SnapshotWithVersion(ctx)
		if err != nil {
			return nil, fmt.Errorf("copy the database: %w", err)
		}
		c = NewCopy(r.Snapshot, 0, dbcopy.Store{})
	}
	defer c.Close()
	return toDisk(stage, c.content(add))
}

// toDisk writes a copy to a file, from which it is read again.
func toDisk(s *workdir.Dir, in io.Reader) (_ *Copy, err error) {
	out, err := os.OpenFile(s.Database(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			out.Close()
		}
	}()
	paced := archive.NewPaced(out)
	size, err := io.CopyBuffer(paced, workdir.OnlyReader{Reader: in}, make([]byte, 256<<10))
	if err = errors.Join(err, paced.Close()); err != nil {
		return nil, err
	}
	store, err := dbcopy.ReadFile(s.Database())
	if err != nil {
		return nil, err
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return &Copy{Size: size, Store: store, Reader: out, close: sync.OnceValue(func() error {
		return errors.Join(out.Close(), archive.Remove(s.Database()))
	})}, nil
}

// trailer sums up all that is written to it but the last bytes, which are a sum.
type trailer struct {
	sum  hash.Hash
	last []byte
}

func newTrailer(sum hash.Hash) *trailer { return &trailer{sum: sum} }

func (t *trailer) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if n := len(t.last) - t.sum.Size(); n > 0 {
		t.sum.Write(t.last[:n])
		t.last = append(t.last[:0], t.last[n:]...)
	}
	return len(p), nil
}

// right reports whether the last bytes are the sum of the others.
func (t *trailer) right() bool { return bytes.Equal(t.sum.Sum(nil), t.last) }
