package support

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Entry is a file of the archive.
type Entry struct {
	Name string
	Text []byte
	Err  error // why Text is missing or incomplete; the archive says it
}

// Write makes the archive at path, with mode 0600, or nothing. A file that exists is not
// replaced. Every entry goes through the Redactor.
func Write(path string, all []Entry, r *Redactor, now time.Time) (err error) {
	file, err := os.CreateTemp(filepath.Dir(path), ".kthwd-support-") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		os.Remove(file.Name())
	}()
	if err := errors.Join(pack(file, all, r, now), file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err == nil || errors.Is(err, os.ErrExist) {
		return err
	}
	if _, err := os.Lstat(path); err == nil { // the file system has no hard links
		return &os.PathError{Op: "write", Path: path, Err: os.ErrExist}
	}
	return os.Rename(file.Name(), path)
}

func pack(w io.Writer, all []Entry, r *Redactor, now time.Time) error {
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	for _, e := range all {
		text := e.Text
		if e.Err != nil {
			text = append(text, fmt.Sprintf("\nmissing: %v\n", e.Err)...)
		}
		text = r.Clean(text)
		h := &tar.Header{Name: filepath.Join("kthwd-support", e.Name), Mode: 0o600, Size: int64(len(text)), ModTime: now, Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(text); err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), zip.Close())
}
