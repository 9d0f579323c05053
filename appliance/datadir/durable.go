package datadir

import (
	"errors"
	"os"
)

// Write makes a file with mode 0600, or overwrites one, and flushes it to the disk. If the
// process dies meanwhile, the file may be incomplete.
func Write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// Sync flushes a file's content, or the names in a directory, to the disk.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Exists reports whether path exists and can be examined.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
