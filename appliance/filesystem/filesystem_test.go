package filesystem

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
)

// mount mounts a file system of the type until the test ends.
func mount(t *testing.T, kind string, argv ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	at := filepath.Join(t.TempDir(), "with blank")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", append(append([]string{"-t", kind}, argv...), at)...).CombinedOutput(); err != nil {
		t.Skipf("no %s here: %s", kind, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(at, 0); err != nil { // nothing may be open there
			t.Errorf("unmount %s: %v", at, err)
		}
	})
	return at
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

func wantNothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left := entries(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// wantLack checks that err names the directory, the lack and the type in one line.
func wantLack(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("not refused")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %q", part, err)
		}
	}
	if hint, ok := advice.Of(err); !ok || !strings.Contains(hint, "--data-dir") {
		t.Errorf("hint %q, want one with the flag", hint)
	}
}

func TestCheckPasses(t *testing.T) {
	dir := t.TempDir()
	defer syscall.Umask(syscall.Umask(0o377)) // the check sets modes itself
	if err := Check(dir, filepath.Join(dir, "a", "b")); err != nil {
		t.Error(err)
	}
	if err := Check(filepath.Join(dir, "data"), dir); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, dir)
}

// mqueue has no directories, and no file that can be written.
func TestCheckOfAFileSystemThatLacksAll(t *testing.T) {
	at := mount(t, "mqueue", "none")
	err := Check(filepath.Join(at, "data"), t.TempDir())
	wantLack(t, err, "--data-dir="+filepath.Join(at, "data"), "(mqueue, mounted at "+at+")", "has no directories")
	wantNothingLeft(t, at)
	err = Check(t.TempDir(), at)
	if err == nil || !strings.HasPrefix(err.Error(), "--etcd-data-dir="+at) {
		t.Errorf("etcd's directory: got %v", err)
	}
}

func TestCheckOfVFAT(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.vfat", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.vfat: %v %s", err, out)
	}
	at := mount(t, "vfat", "-o", "loop", image)
	wantLack(t, Check(at, at), "vfat", "hard links", "file modes", "unix sockets")
	wantNothingLeft(t, at)
}

// A file system that is full, read-only or closed to the user is reported elsewhere.
func TestCheckLeavesOtherTroubleToOthers(t *testing.T) {
	for _, options := range []string{"ro", "size=4k,nr_inodes=1", "size=4k,nr_inodes=2"} {
		at := mount(t, "tmpfs", "-o", options, "none")
		if err := Check(at, at); err != nil {
			t.Errorf("%s: %v", options, err)
		}
		wantNothingLeft(t, at)
	}
}

// Each need is met here, so that its absence is known only as the error of a system call.
func TestLack(t *testing.T) {
	for _, err := range []error{unix.EPERM, unix.ENOTSUP, unix.ENOSYS, unix.EINVAL, errLack} {
		if got := lack(nil, "x", &os.LinkError{Op: "link", Err: err}); !slices.Equal(got, []string{"x"}) {
			t.Errorf("%v is no lack", err)
		}
	}
	for _, err := range []error{nil, unix.ENOSPC, unix.EROFS, unix.EDQUOT, unix.EACCES, unix.EMFILE, unix.EIO} {
		if got := lack(nil, "x", err); got != nil {
			t.Errorf("%v is a lack", err)
		}
	}
}

func TestFind(t *testing.T) {
	const info = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 8:17 / /mnt/my\040stick rw,nosuid shared:2 master:1 - exfat /dev/sdb1 rw
31 21 0:40 / /mnt rw - tmpfs none rw
32 31 0:41 / /mnt rw - btrfs none rw
garbage
`
	for path, want := range map[string]string{
		"/":                     "ext4 /",
		"/mnt/my stick":         "exfat /mnt/my stick",
		"/mnt/my stick/data":    "exfat /mnt/my stick",
		"/mnt/my stickers/data": "btrfs /mnt",
		"/mntx":                 "ext4 /",
	} {
		if kind, at := find(info, path); kind+" "+at != want {
			t.Errorf("%s: got %s %s, want %s", path, kind, at, want)
		}
	}
	if kind, at := find("", "/"); kind != "" || at != "" {
		t.Errorf("without /proc: got %q, %q", kind, at)
	}
}
