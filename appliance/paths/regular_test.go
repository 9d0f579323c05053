package paths

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What another user may put in a file's place neither stops a reader nor shows it another file.
func TestReadRegular(t *testing.T) {
	dir := t.TempDir()
	file, link, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(file, []byte("12345678"), 0o600), os.Symlink(file, link), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{file: "1234", link: "", fifo: "", dir: "", "/dev/zero": "", filepath.Join(dir, "none"): ""} {
		got, info, err := ReadRegular(path, 4)
		if string(got) != want || (err == nil) != (want != "") || err == nil && info.Size() != 8 {
			t.Errorf("%s: got %q, %v, %v; want %q", path, got, info, err, want)
		}
	}
	if f, _, err := OpenRegular(link, true); err != nil {
		t.Errorf("a link that may be followed: %v", err)
	} else {
		f.Close()
	}
	if _, _, err := OpenRegular(fifo, true); err == nil {
		t.Error("a FIFO is opened")
	}
}
