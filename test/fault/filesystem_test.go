package fault

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// TestFileSystemThatLacks: a start on a file system that lacks what kthwd needs is refused with its
// type, as the directory of kthwd or of etcd's data, and leaves nothing there. Every kernel has a
// file system without directories, for message queues; one without hard links, owners and modes
// is left out where the kernel has none.
func TestFileSystemThatLacks(t *testing.T) {
	kthwtest.Turn(t, 1)
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system of its own")
	}
	for kind, lacks := range map[string]struct{ data, etcd string }{
		"mqueue": {"no directories", "no directories"},
		"vfat":   {"no file modes, no file owners, no hard links, no unix sockets", "no file modes, no file owners"},
	} {
		t.Run(kind, func(t *testing.T) {
			at := mounted(t, kind)
			said := ": the file system (" + kind + ", mounted at " + at + ") has "
			for _, tt := range []struct{ data, etcd, error string }{
				{at, t.TempDir(), "--data-dir=" + at + "/data" + said + lacks.data},
				{t.TempDir(), at, "--etcd-data-dir=" + at + "/etcd" + said + lacks.etcd},
			} {
				before := tree(t, at)
				a := attempt{dir: filepath.Join(tt.data, "data"), ports: kthwtest.FreePorts(t, "127.0.0.1"), args: []string{"--etcd-data-dir=" + filepath.Join(tt.etcd, "etcd")}}
				a.run(t).check(t, 1, "ext4, xfs or btrfs", tt.error)
				if after := tree(t, at); after != before {
					t.Errorf("got %s, want %s", after, before)
				}
			}
		})
	}
}

// mounted mounts a file system of that type, as root's alone, until the test ends.
func mounted(t *testing.T, kind string) string {
	t.Helper()
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(64<<20), f.Close(), os.Mkdir(at, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	steps := [][]string{{"mount", "-t", kind, "none", at}, {"chmod", "0700", at}}
	if kind == "vfat" {
		steps = [][]string{{"mkfs.vfat", image}, {"mount", "-o", "loop,umask=077", image, at}}
	}
	for _, argv := range steps {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Skipf("no %s here: %q: %v\n%s", kind, argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
	return at
}
