package pki

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"kthwd/appliance/durable"
	"kthwd/appliance/text"
)

const (
	modeSecret fs.FileMode = 0o600
	modePublic fs.FileMode = 0o644
	modeConfig fs.FileMode = 0o640 // arguments of the programs may hold secrets; root may give it the service's group
	modeDir    fs.FileMode = 0o700

	maxSize = 1 << 20 // far more than any of these files needs
)

// A file is a file to make.
type file struct {
	path   string
	data   []byte
	mode   fs.FileMode
	isKey  bool // linked and synced before all others
	staged bool // already exists under its hidden name
}

// write makes the files of one directory, which the caller has locked.
//
// No file receives its name before all are whole and on the disk, so a full disk does
// no harm. After that, a failure is like a crash: keys may lack their certificates,
// and the hidden files remain for the next Ensure.
func write(dir string, files []file) error {
	if err := stage(files); err != nil {
		return err
	}
	for _, keys := range []bool{true, false} {
		if err := durable.Sync(dir); err != nil {
			return err
		}
		if err := link(files, keys); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := os.Remove(durable.Hidden(f.path)); err != nil {
			return err
		}
	}
	return durable.Sync(dir)
}

// stage writes all files under their hidden names or, on failure, none.
func stage(files []file) error {
	for i, f := range files {
		if f.staged {
			continue
		}
		if err := writeHidden(f); err != nil {
			for _, f := range files[:i+1] {
				if !f.staged {
					os.Remove(durable.Hidden(f.path))
				}
			}
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	return nil
}

func writeHidden(f file) error {
	name := durable.Hidden(f.path)
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.Create(name, f.data, f.mode)
}

// link gives files their names: the keys or, if keys is false, all others.
func link(files []file, keys bool) error {
	for _, f := range files {
		if f.isKey != keys {
			continue
		}
		err := os.Link(durable.Hidden(f.path), f.path)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("write %s: it appeared meanwhile, and kthwd replaces no file: %w", f.path, fs.ErrExist)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeDir creates the directory and its missing parents.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, modeDir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return durable.Sync(filepath.Dir(dir))
}

// lock waits for the directory's lock: syscall.LOCK_EX to write, LOCK_SH to read. It
// locks the directory itself, so it leaves no lock file behind and works on a
// read-only directory. Closing the result, or the end of the process, releases it.
func lock(dir string, how int) (io.Closer, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		info, _ := os.Stat(dir)
		return nil, unreadable(dir, info)
	}
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(d.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), d.Close())
	}
	return d, nil
}

// read returns the content of the file, or a Misfit if it cannot be a file of this
// package. For a missing file the error is exactly fs.ErrNotExist.
func read(path string) ([]byte, fs.FileInfo, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fs.ErrNotExist
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &Misfit{File: path, Problem: "a symbolic link to nothing", Hint: "restore what it points to, or remove it"}
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, nil, &Misfit{File: path, Problem: "not a regular file"}
	}
	if err == nil && info.Size() > maxSize {
		return nil, nil, &Misfit{File: path, Problem: fmt.Sprintf("too large for a file of this name (%d bytes)", info.Size())}
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil, unreadable(path, info)
	}
	if err != nil {
		return nil, nil, &Misfit{File: path, Problem: fmt.Sprintf("cannot be read: %v", errors.Unwrap(err))}
	}
	return data, info, nil
}

func unreadable(path string, info fs.FileInfo) *Misfit {
	m := &Misfit{File: path, Problem: fmt.Sprintf("not readable by kthwd, which runs as uid %d", os.Geteuid())}
	if info == nil {
		return m
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		m.Problem += fmt.Sprintf("; it belongs to uid %d (mode %04o)", owner.Uid, info.Mode().Perm())
		m.Hint = fmt.Sprintf("chown %d %s, or run kthwd as its owner", os.Geteuid(), text.ShellWord(path))
	}
	return m
}
