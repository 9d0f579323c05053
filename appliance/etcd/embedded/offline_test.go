package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Close waits for no member that has died: a goroutine of etcd's that has ended holds what the
// others wait for.
func TestCloseOfTheDead(t *testing.T) {
	o, err := OpenOffline(t.Context(), "c0", t.TempDir(), true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	tx := o.Server.Backend().BatchTx()
	tx.LockOutsideApply() // as the one that has ended would hold it
	disk := errors.New("no space left on device")
	o.fatal <- disk
	closed := make(chan error, 1)
	go func() { closed <- o.Close() }()
	select {
	case err := <-closed:
		if !errors.Is(err, disk) {
			t.Errorf("got %v, want %v", err, disk)
		}
	case <-time.After(time.Minute):
		t.Error("it waits")
	}
	tx.Unlock()
}

// TestRestOfADefragmentation has a copy of the database that a killed defragmentation has left.
func TestRestOfADefragmentation(t *testing.T) {
	dir := t.TempDir()
	o, err := OpenOffline(t.Context(), "c0", dir, true, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	snap := filepath.Join(dir, "member", "snap")
	before := names(t, snap)
	if err := os.WriteFile(filepath.Join(snap, "db.tmp.123"), []byte("rest"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(dir); err != nil {
		t.Fatal(err)
	}
	if after := names(t, snap); after != before {
		t.Errorf("%s has %s; want %s", snap, after, before)
	}
	if err := Prepare(t.TempDir()); err != nil { // without data
		t.Error(err)
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(entries)
}
