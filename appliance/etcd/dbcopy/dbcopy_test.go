package dbcopy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"kthwd/appliance/etcd/embedded"
)

// A copy is under way from the first begin to the last end.
func TestCopies(t *testing.T) {
	var o Open
	if !o.Since().IsZero() {
		t.Error("a new member copies")
	}
	first := o.Begin()
	since := o.Since()
	second := o.Begin()
	first()
	if since.IsZero() || o.Since() != since {
		t.Errorf("with one of two ended: since %v, then %v", since, o.Since())
	}
	if second(); !o.Since().IsZero() {
		t.Error("it copies without a copy")
	}
}

// A copy knows its size and the state of its store before it is read, and has nothing of what is
// written later.
func TestCopy(t *testing.T) {
	o, err := embedded.OpenOffline(t.Context(), "c0", t.TempDir(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	put := func(n int) {
		for i := range n {
			if _, err := o.Server.Put(t.Context(), &pb.PutRequest{Key: []byte(strconv.Itoa(i)), Value: make([]byte, 1000)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(20)
	if _, err := o.Server.Compact(t.Context(), &pb.CompactionRequest{Revision: 9}); err != nil {
		t.Fatal(err)
	}
	rev := o.Server.KV().Rev()
	c, err := NewCopy(o.Server.Backend())
	if err != nil {
		t.Fatal(err)
	}
	put(200)
	if want := (Store{rev, 9}); c.Store != want {
		t.Errorf("got %+v, want %+v", c.Store, want)
	}
	var b bytes.Buffer
	if err := errors.Join(c.Send(t.Context(), &b), c.Close()); err != nil {
		t.Fatal(err)
	}
	if int64(b.Len()) != c.Size {
		t.Errorf("%d bytes, and it said %d", b.Len(), c.Size)
	}
	body, last := b.Bytes()[:b.Len()-sha256.Size], b.Bytes()[b.Len()-sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], last) {
		t.Error("its sum is another")
	}
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.View(func(tx *bbolt.Tx) error {
		is, err := ReadStore(tx)
		if is != c.Store {
			t.Errorf("the copy is of %+v, and it said %+v", is, c.Store)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}

// A copy ends when its reader has gone.
func TestCopyEnds(t *testing.T) {
	o, err := embedded.OpenOffline(t.Context(), "c0", t.TempDir(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	c, err := NewCopy(o.Server.Backend())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Send(ctx, io.Discard); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) { // bbolt keeps the text only
		t.Errorf("got %v", err)
	}
}
