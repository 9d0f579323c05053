package datadir

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"kthwd/appliance/pki"
)

// Root asks for the holder of a directory of kthwd's. A FIFO in place of the lock kept it waiting for
// good, and a link could name any file.
func TestHolderReadsNoFIFOAndNoLink(t *testing.T) {
	l := pki.Layout{Dir: t.TempDir()}
	lock, err := Lock(l)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if got := Holder(l); got != os.Getpid() {
		t.Fatalf("got %d, want %d", got, os.Getpid())
	}
	moved := filepath.Join(l.Dir, "moved")
	if err := os.Rename(l.Lock(), moved); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func() error{
		"FIFO": func() error { return syscall.Mkfifo(l.Lock(), 0o600) },
		"link": func() error { return os.Symlink(moved, l.Lock()) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if got := Holder(l); got != 0 {
			t.Errorf("%s: got %d, want no holder", name, got)
		}
		if err := os.Remove(l.Lock()); err != nil {
			t.Fatal(err)
		}
	}
}
