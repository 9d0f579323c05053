// Package workdir makes the hidden directories in which an archive, a verification or a copy is made,
// and removes those of processes that have died.
package workdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"kthwd/appliance/archive"
	"kthwd/appliance/datadir"
)

// Prefix begins the name of a directory in which an archive is made or verified.
const Prefix = ".kthwd-backup-"

const lockName = "lock"

// Dir is a directory for the files of one backup or one verification. It is locked as long as its process lives.
type Dir struct {
	Path   string
	parent *os.Root
	lock   *os.File
}

// New makes a directory in dir, and removes those of processes that have died. It refuses a
// dir in which another user could put something else in its place.
func New(dir string) (*Dir, error) {
	if err := datadir.Steady(dir); err != nil {
		return nil, err
	}
	parent, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	removeLeftovers(parent)
	path, err := os.MkdirTemp(dir, Prefix)
	if err != nil {
		parent.Close()
		return nil, err
	}
	s := &Dir{Path: path, parent: parent}
	s.lock, err = os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		s.Remove()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return s, nil
}

// removeLeftovers removes the directories of processes that have died. A directory whose
// lock is not there yet belongs to a process that begins.
func removeLeftovers(parent *os.Root) {
	entries, _ := fs.ReadDir(parent.FS(), ".")
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), Prefix) {
			continue
		}
		dir, err := openStage(parent, e.Name())
		if err != nil {
			continue
		}
		lock, err := openLock(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			_ = parent.Remove(e.Name()) // succeeds only if it is empty; a process that begins then fails, and says so
		case err == nil && syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil:
			_ = removeStage(parent, e.Name(), dir)
		}
		if err == nil {
			lock.Close()
		}
		dir.Close()
	}
}

// errNoStage means that a name that begins like a stage's is something else.
var errNoStage = errors.New("no directory of this user")

// openStage opens a directory of this user's: a link in its place, which leads out of the parent or
// to another directory in it, is none, and neither is a directory of another user, who can
// exchange what is in it.
func openStage(parent *os.Root, name string) (*os.Root, error) {
	named, err := parent.Lstat(name)
	if err != nil {
		return nil, err
	}
	if stat, ok := named.Sys().(*syscall.Stat_t); !ok || !named.IsDir() || int(stat.Uid) != os.Geteuid() {
		return nil, errNoStage
	}
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	if opened, err := dir.Stat("."); err != nil || !os.SameFile(named, opened) { // a link has taken its place
		dir.Close()
		return nil, errors.Join(err, errNoStage)
	}
	return dir, nil
}

func openLock(dir *os.Root) (*os.File, error) {
	info, err := dir.Lstat(lockName)
	if err == nil && !info.Mode().IsRegular() {
		err = errNoStage
	}
	if err != nil {
		return nil, err
	}
	return dir.OpenFile(lockName, os.O_RDWR|syscall.O_NONBLOCK, 0)
}

// removeStage removes the lock last: what cannot be removed now, because a child of the dead
// process still writes there, is found again. Large files go first, piece by piece.
func removeStage(parent *os.Root, name string, dir *os.Root) error {
	_ = fs.WalkDir(dir.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != lockName {
			removeFile(dir, path)
		}
		return nil
	})
	entries, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockName {
			continue
		}
		if err := dir.RemoveAll(e.Name()); err != nil {
			return err
		}
	}
	if err := dir.Remove(lockName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return parent.Remove(name)
}

// removeFile is archive.Remove within a directory.
func removeFile(dir *os.Root, path string) {
	f, err := dir.OpenFile(path, os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if dir.Remove(path) == nil {
		archive.Free(f)
	}
}

// GlobEscape makes a path stand for itself in a pattern.
func GlobEscape(path string) string {
	var b bytes.Buffer
	for _, c := range []byte(path) {
		if c == '*' || c == '?' || c == '[' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

// Remove removes the directory with all that is in it.
func (s *Dir) Remove() {
	if dir, err := openStage(s.parent, filepath.Base(s.Path)); err == nil {
		_ = removeStage(s.parent, filepath.Base(s.Path), dir) // the next one tries again
		dir.Close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
	s.parent.Close()
}

// Database is the path of a database in it.
func (s *Dir) Database() string { return filepath.Join(s.Path, archive.Database) }

// Archive is the path of an archive in it.
func (s *Dir) Archive(m archive.Manifest) string { return filepath.Join(s.Path, archive.Name(m)) }

// OnlyReader hides that a reader can write itself, so that the size of the buffer counts.
type OnlyReader struct{ io.Reader }
