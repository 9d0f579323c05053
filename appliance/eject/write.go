package eject

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
)

// CheckOut refuses a directory that is not empty. One that does not exist is right.
func CheckOut(dir string) error {
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
// writes nothing elsewhere. After an error the directory may hold a part of them.
func Write(dir string, files []File) error {
	if err := CheckOut(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	written := map[string]bool{dir: true}
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := durable.Create(path, f.Data, f.Mode); err != nil {
			return err
		}
		written[filepath.Dir(path)] = true
	}
	for d := range written {
		if err := durable.Sync(d); err != nil {
			return err
		}
	}
	return nil
}
