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

// TestFileSystemThatLacks: a start on a file system without hard links, owners and modes is refused
// with its name, as the directory of kthwd or of etcd's data, and leaves nothing there.
func TestFileSystemThatLacks(t *testing.T) {
	kthwtest.Turn(t, 1)
	mount := vfat(t)
	for _, tt := range []struct {
		name      string
		data, own string
		lacks     string
	}{
		{"the data directory", mount, t.TempDir(), "--data-dir=" + mount + "/data: the file system (vfat, mounted at " + mount + ") has no file modes, no file owners, no hard links, no unix sockets"},
		{"etcd's", t.TempDir(), mount, "--etcd-data-dir=" + mount + "/etcd: the file system (vfat, mounted at " + mount + ") has no file modes, no file owners"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := tree(t, mount)
			a := attempt{dir: filepath.Join(tt.data, "data"), ports: kthwtest.FreePorts(t, "127.0.0.1"), args: []string{"--etcd-data-dir=" + filepath.Join(tt.own, "etcd")}}
			a.run(t).check(t, 1, "ext4, xfs or btrfs", tt.lacks)
			if after := tree(t, mount); after != before {
				t.Errorf("got %s, want %s", after, before)
			}
		})
	}
}

// vfat mounts a file system of that type, as root's alone, until the test ends.
func vfat(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system of its own")
	}
	if _, err := exec.LookPath("mkfs.vfat"); err != nil && os.Getenv("KTHWD_NO_SKIP") == "" {
		t.Skip("needs mkfs.vfat, of Debian's dosfstools")
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(64<<20), f.Close(), os.Mkdir(mount, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.vfat", image}, {"mount", "-o", "loop,umask=077", image, mount}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mount, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", mount, err)
		}
	})
	return mount
}
