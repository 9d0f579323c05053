package etcdrestore

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A writer that is faster than the disk waits for it, and no longer when keepFlushed has ended.
func TestKeepFlushed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	synchronous := func() bool {
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			t.Skipf("the file system has no flags: %v", err)
		}
		return flags&syncFlag != 0
	}
	ctx, stop := context.WithCancel(t.Context())
	var flushed sync.WaitGroup
	flushed.Go(func() { keepFlushed(ctx, path) })
	defer func() { stop(); flushed.Wait() }()
	const most = 1 << 28
	data := make([]byte, 64<<10)
	for n := 0; !synchronous(); n += len(data) {
		if n >= most {
			t.Fatalf("%d bytes were written, and no write has waited", n)
		}
		if _, err := f.WriteAt(data, int64(n)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	flushed.Wait()
	if synchronous() {
		t.Error("the writes wait for ever")
	}
}
