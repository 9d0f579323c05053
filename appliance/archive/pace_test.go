package archive

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestPaced(t *testing.T) {
	for _, size := range []int{0, 1, pace, 3*pace + 17} {
		path, data := filepath.Join(t.TempDir(), "file"), make([]byte, size)
		_, _ = rand.Read(data)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p := NewPaced(f)
		if n, err := io.CopyBuffer(p, onlyReader{bytes.NewReader(data)}, make([]byte, 100_000)); err != nil || n != int64(size) {
			t.Errorf("%d of %d bytes: %v", n, size, err)
		}
		if err := errors.Join(p.Close(), p.Close()); err != nil {
			t.Error(err)
		}
		if is, err := os.ReadFile(path); err != nil || !bytes.Equal(is, data) {
			t.Errorf("the file of %d bytes has others: %v", size, err)
		}
	}
}

// A full disk is told once: by the Write after the piece, or by Close.
func TestPacedOnAFullDisk(t *testing.T) {
	for _, size := range []int{1, pace, 10 * pace} {
		f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p := NewPaced(f)
		n, errWrite := p.Write(make([]byte, size))
		errClose := p.Close()
		if err := errors.Join(errWrite, errClose); !errors.Is(err, syscall.ENOSPC) || errWrite != nil && (errClose != nil || n == size) {
			t.Errorf("%d bytes: %d written, %v, then %v", size, n, errWrite, errClose)
		}
	}
}

// writeLarge makes a file that is freed in pieces.
func writeLarge(t *testing.T) (path string, data []byte) {
	t.Helper()
	path, data = filepath.Join(t.TempDir(), "file"), bytes.Repeat([]byte("kthwd"), freed)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func TestFree(t *testing.T) {
	path, data := writeLarge(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := func() int64 {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	if Free(f); size() != int64(len(data)) {
		t.Fatal("a file with a name has lost bytes")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if Free(f); size() > freed {
		t.Errorf("%d bytes are left, want %d or less", size(), freed)
	}
}

// What has another name, or another reader, keeps every byte.
func TestRemoveKeepsOthers(t *testing.T) {
	path, data := writeLarge(t)
	link := path + ".link"
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, link} {
		reader, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		if err := Remove(name); err != nil {
			t.Fatal(err)
		}
		if is, err := io.ReadAll(reader); err != nil || !bytes.Equal(is, data) {
			t.Errorf("%s: its reader got %d bytes of %d, %v", name, len(is), len(data), err)
		}
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if err := Remove(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is gone: %v", err)
	}
}
