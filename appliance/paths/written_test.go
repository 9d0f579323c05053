package paths

import (
	"os"
	"path/filepath"
	"testing"
)

// What another user could have written is named: the file, or a directory above it.
func TestWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs files of root's")
	}
	dir, err := os.MkdirTemp("/run", "kthwd-test-") // every directory above is root's
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "program")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func() error
		want   string
	}{
		"nobody else":                {func() error { return nil }, ""},
		"others write the file":      {func() error { return os.Chmod(path, 0o757) }, path},
		"another user has the file":  {func() error { return os.Chown(path, 12345, 0) }, path},
		"others write the directory": {func() error { return os.Chmod(dir, 0o777) }, dir},
		"a directory like /tmp":      {func() error { return os.Chmod(dir, 0o777|os.ModeSticky) }, ""},
	} {
		if err := tt.change(); err != nil {
			t.Fatal(err)
		}
		if at, err := Written(path); err != nil || at != tt.want {
			t.Errorf("%s: got %q, %v, want %q", name, at, err, tt.want)
		}
		if os.Chmod(path, 0o755) != nil || os.Chown(path, 0, 0) != nil || os.Chmod(dir, 0o700) != nil {
			t.Fatal("cannot undo the change")
		}
	}
	if _, err := Written(path + "-none"); err == nil {
		t.Error("a file that is not there: got no error")
	}
}
