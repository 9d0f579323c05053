package binary

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"kthwd/test/harness"
)

// program is the path of a program that is no kthwd: this test.
func program(t *testing.T, mode os.FileMode) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return file(t, data, mode)
}

func file(t *testing.T, data []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// foreign is the path of a program for a machine that this is not.
func foreign(t *testing.T) string {
	t.Helper()
	path := program(t, 0o755)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint16(data[18:], uint16(elf.EM_S390)) // e_machine
	return file(t, data, 0o755)
}

// What is no kthwd for this machine gets a sentence of its own, and is not executed.
func TestExamine(t *testing.T) {
	for _, tt := range []struct{ name, path, want, hint string }{
		{"missing", filepath.Join(t.TempDir(), "none"), "does not exist", "--binary"},
		{"a directory", t.TempDir(), "is no file", "--binary"},
		{"not executable", program(t, 0o644), "is not executable", "chmod +x"},
		{"a text that is not executable", file(t, []byte("kthwd\n"), 0o644), "is no kthwd: it is no program for Linux", "--binary"},
		{"empty", file(t, nil, 0o755), "is no kthwd", "--binary"},
		{"a script", file(t, []byte("#!/bin/sh\ntouch executed\n"), 0o755), "is no kthwd: it is no program for Linux", "--binary"},
		{"a truncated program", file(t, []byte("\x7fELF\x02\x01\x01"), 0o755), "is no kthwd", "--binary"},
		{"another program", program(t, 0o755), "is no kthwd: it is another program", "--binary"},
		{"another architecture", foreign(t), "is for another architecture, S390; this machine is " + runtime.GOARCH, runtime.GOARCH},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := Binary{Path: tt.path}
			err := b.examine(false)
			harness.CheckRefusal(t, err, tt.want, tt.hint)
			if _, err := Inspect(t.Context(), tt.path); err == nil {
				t.Error("it is accepted")
			}
		})
	}
	if _, err := os.Stat("executed"); err == nil {
		t.Error("the script was executed")
	}
}

// As root nothing is executed that another user could have written.
func TestOnlyRoots(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs files of root's")
	}
	dir, err := os.MkdirTemp("/run", "kthwd-test-") // every directory above is root's
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "kthwd")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := onlyRoots(path); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func() error{
		"others write the file":      func() error { return os.Chmod(path, 0o757) },
		"the group writes the file":  func() error { return os.Chmod(path, 0o775) },
		"another user has the file":  func() error { return os.Chown(path, 12345, 0) },
		"others write the directory": func() error { return os.Chmod(dir, 0o777) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		err := onlyRoots(path)
		if err == nil || !strings.Contains(err.Error(), "is not executed as root") {
			t.Errorf("%s: got %v", name, err)
		}
		if os.Chmod(path, 0o755) != nil || os.Chown(path, 0, 0) != nil || os.Chmod(dir, 0o700) != nil {
			t.Fatal("cannot undo the change")
		}
	}
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := onlyRoots(path); err != nil {
		t.Errorf("in a directory like /tmp: %v", err)
	}
}
