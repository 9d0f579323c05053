package eject

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"kthwd/appliance/advice"
	"kthwd/appliance/datadir"
	"kthwd/appliance/durable"
)

// CheckOut refuses a directory that is not empty, and one in which another user could exchange the
// units that root installs. One that does not exist is right.
func CheckOut(dir string) error {
	path, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := datadir.Unshared(path); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return advice.With(err, "name a new directory with --out")
	case len(entries) > 0:
		return advice.With(fmt.Errorf("%s is not empty: it has %s", dir, entries[0].Name()), "name a new or an empty directory with --out")
	}
	return nil
}

// Write writes the files into the directory, which it makes, with directories below it. It
// writes nothing elsewhere, and after an error nothing is left of it.
func Write(dir string, files []File) (err error) {
	if err := CheckOut(dir); err != nil {
		return err
	}
	var m traces
	defer func() {
		if err != nil {
			m.remove()
		}
	}()
	if err := m.directory(dir); err != nil {
		return err
	}
	if err := CheckOut(dir); err != nil { // somebody else may have been quicker
		return err
	}
	written := map[string]bool{dir: true}
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := m.directory(filepath.Dir(path)); err != nil {
			return err
		}
		written[filepath.Dir(path)] = true
		err := durable.Create(path, f.Data, f.Mode)
		if !errors.Is(err, fs.ErrExist) {
			m = append(m, path)
		}
		if err != nil {
			return err
		}
	}
	for d := range written {
		if err := durable.Sync(d); err != nil {
			return err
		}
	}
	return nil
}

// traces are the files and directories that Write has made, in this order.
type traces []string

// directory makes a directory, and those above it.
func (m *traces) directory(path string) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrNotExist) && path != filepath.Dir(path) {
		if err := m.directory(filepath.Dir(path)); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o755)
	}
	switch info, errStat := os.Stat(path); {
	case err == nil:
		*m = append(*m, path)
	case errors.Is(err, fs.ErrExist) && errStat == nil && info.IsDir():
		err = nil
	}
	return err
}

func (m traces) remove() {
	for _, path := range slices.Backward(m) {
		_ = os.Remove(path) // the error of Write says more
	}
}
