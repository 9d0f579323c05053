// Package durable writes files that must survive a crash of the machine.
//
// Write replaces a file: a reader, also after a crash, finds the old content or the new
// content. Create makes a file and refuses one that exists; a caller that must never
// replace a file creates it under the name that Hidden returns, then links it. Both ignore
// the umask. Sync flushes a file, or the names in a directory.
//
// A path must have one writer at a time. The package imports the standard library only.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Hidden returns the name under which a file is written before it receives its own.
func Hidden(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// Write makes or replaces the file, with that mode, and returns when the disk has the data
// and the name. After an error the old file is unchanged, or the new file is complete.
func Write(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, func(string) error { return nil })
}

// write calls prepare with the new file before it receives its name.
func write(path string, data []byte, mode fs.FileMode, prepare func(hidden string) error) error {
	hidden := Hidden(path)
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := Create(hidden, data, mode)
	if err == nil {
		err = prepare(hidden)
	}
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		_ = os.Remove(hidden) // err says more
		return err
	}
	return Sync(filepath.Dir(path))
}

// Replace writes a file in place of another, with the mode and the owner of that; a process that may
// not give files away keeps it. A symbolic link stays, and its target is replaced.
func Replace(path string, data []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return write(path, data, info.Mode().Perm(), func(hidden string) error {
		was, ok := info.Sys().(*syscall.Stat_t)
		if !ok || int(was.Uid) == os.Geteuid() && int(was.Gid) == os.Getegid() {
			return nil
		}
		err := os.Chown(hidden, int(was.Uid), int(was.Gid))
		if os.Geteuid() != 0 && errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	})
}

// Replaceable tries to write beside the file, or beside the target of a symbolic link.
func Replaceable(path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	trial := Hidden(path)
	_ = os.Remove(trial) // of a process that died
	return errors.Join(Create(trial, nil, 0o600), os.Remove(trial))
}

// Create makes the file, with that mode, and returns when the disk has the data. The name
// also needs a Sync of the directory. A file that exists is an error, fs.ErrExist. After
// another error the file may be incomplete.
func Create(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(mode); err != nil { // regardless of the umask
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// Sync flushes a file's content, or the names in a directory, to the disk.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
