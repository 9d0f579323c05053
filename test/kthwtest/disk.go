package kthwtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskSize = 2 << 30 // of the image, which is sparse

	// linux/fs.h, which x/sys/unix lacks.
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Disk is a separate file system, an ext4 image on a loop device, that can stall and
// be filled. Creating one needs root.
type Disk struct {
	path string
	root *os.File

	mu     sync.Mutex
	frozen *time.Timer // thaws it whatever happens in the test
}

// NewDisk creates path and mounts a disk there until the test ends. The image is in a
// new temporary directory of the test.
func NewDisk(t testing.TB, path string) *Disk { return NewDiskIn(t, path, t.TempDir()) }

// NewDiskIn is NewDisk with the image in an existing directory.
func NewDiskIn(t testing.TB, path, in string) *Disk {
	t.Helper()
	image := filepath.Join(in, "image")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(diskSize), f.Close(), os.Mkdir(path, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, path}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
	d := &Disk{path: path}
	t.Cleanup(func() {
		if d.root != nil {
			d.Thaw()
			d.root.Close()
		}
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	if d.root, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	return d
}

// Stall makes every write and fsync wait until Thaw is called, for at most a minute.
func (d *Disk) Stall(t testing.TB) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := unix.IoctlSetInt(int(d.root.Fd()), fiFreeze, 0); err != nil {
		t.Fatalf("freeze %s: %v", d.path, err)
	}
	d.frozen = time.AfterFunc(time.Minute, d.Thaw)
}

// Thaw ends a stall, if there is one.
func (d *Disk) Thaw() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.frozen == nil {
		return
	}
	d.frozen.Stop()
	d.frozen = nil
	_ = unix.IoctlSetInt(int(d.root.Fd()), fiThaw, 0)
}

func (d *Disk) filler() string { return filepath.Join(d.path, "filler") }

// Fill takes all free space.
func (d *Disk) Fill(t testing.TB) {
	t.Helper()
	f, err := os.Create(d.filler())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk, end := int64(64<<20), int64(0); chunk >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, end, chunk); err == nil {
			end += chunk
		} else if errors.Is(err, unix.ENOSPC) {
			chunk /= 2
		} else {
			t.Fatalf("fill %s: %v", d.path, err)
		}
	}
}

// MakeRoom releases the space that Fill took.
func (d *Disk) MakeRoom(t testing.TB) {
	t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		t.Error(err)
	}
}
