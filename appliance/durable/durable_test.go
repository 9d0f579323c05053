package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func check(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("%s has %q, %v; want %q", path, got, err, content)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
		t.Errorf("%s: %v, %v; want mode %v", path, info, err, mode)
	}
}

func TestWrite(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "file")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(Write(path, []byte("first, and longer"), 0o644))
	check(t, path, "first, and longer", 0o644)
	must(os.WriteFile(Hidden(path), []byte("of a crash"), 0o666))
	old, err := os.Open(path)
	must(err)
	defer old.Close()
	must(Write(path, []byte("second"), 0o600))
	check(t, path, "second", 0o600)
	before := make([]byte, 5)
	if _, err := old.Read(before); err != nil || string(before) != "first" {
		t.Errorf("a reader of the old file got %q, %v: it was overwritten, not replaced", before, err)
	}
	if _, err := os.Lstat(Hidden(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the hidden file remains: %v", err)
	}
}

// A failed Write leaves no hidden file, and the old file as it was.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "directory")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestCreateReplacesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := Create(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want %v", err, fs.ErrExist)
	}
	check(t, path, "first", 0o600)
}

// TestReplaceOfAnothersFile is a process that may write to the directory, and not give files away.
func TestReplaceOfAnothersFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a file of root's")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "kthwd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(path, []byte("old"), 0o640), os.Chown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	as := func(uid int) {
		t.Helper()
		if err := syscall.Setresuid(-1, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	as(nobody)
	replaced, may := Replace(path, []byte("new")), Replaceable(path)
	as(0)
	if err := errors.Join(replaced, may); err != nil {
		t.Error(err)
	}
	check(t, path, "new", 0o640)
	if err := Replace(path, []byte("newer")); err != nil {
		t.Error(err)
	}
	check(t, path, "newer", 0o640)
	if info, err := os.Stat(path); err != nil || info.Sys().(*syscall.Stat_t).Uid != nobody {
		t.Errorf("root's Replace has changed the owner: %+v, %v", info.Sys(), err)
	}
}
