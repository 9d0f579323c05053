package backup

import (
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"kthwd/appliance/archive"
)

// stagePrefix begins the name of a directory in which an archive is made or verified.
const stagePrefix = ".kthwd-backup-"

const lockName = "lock"

// stage is a directory for the files of one backup or one verification. It is locked as long as its process lives.
type stage struct {
	dir  string
	lock *os.File
}

// newStage makes a directory in dir, and removes those of processes that have died.
func newStage(dir string) (*stage, error) {
	removeLeftovers(dir)
	path, err := os.MkdirTemp(dir, stagePrefix)
	if err != nil {
		return nil, err
	}
	s := &stage{dir: path}
	s.lock, err = os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		s.remove()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return s, nil
}

// removeLeftovers removes the directories of processes that have died. A directory whose
// lock is not there yet belongs to a process that begins.
func removeLeftovers(dir string) {
	all, _ := filepath.Glob(filepath.Join(globEscape(dir), stagePrefix+"*"))
	for _, path := range all {
		lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
		if err != nil {
			_ = os.Remove(path) // succeeds only if it is empty; a process that begins then fails, and says so
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = removeStage(path)
		}
		lock.Close()
	}
}

// removeStage removes the lock last: what cannot be removed now, because a child of the dead
// process still writes there, is found again.
func removeStage(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(dir, lockName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Remove(dir)
}

// globEscape makes a path stand for itself in a pattern.
func globEscape(path string) string {
	var b bytes.Buffer
	for _, c := range []byte(path) {
		if c == '*' || c == '?' || c == '[' || c == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

func (s *stage) remove() {
	_ = removeStage(s.dir) // the next one tries again
	if s.lock != nil {
		s.lock.Close()
	}
}

func (s *stage) database() string { return filepath.Join(s.dir, archive.Database) }

func (s *stage) archive(m archive.Manifest) string { return filepath.Join(s.dir, archive.Name(m)) }

// content returns the files for archive.Write.
func (s *stage) content(f *files, add func(int64)) func(name string) (io.ReadCloser, error) {
	return func(name string) (io.ReadCloser, error) {
		if name != archive.Database {
			return io.NopCloser(bytes.NewReader(f.content[name])), nil
		}
		file, err := os.Open(s.database())
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.TeeReader(file, adder(add)), file}, nil
	}
}

// adder counts what is written to it.
type adder func(int64)

func (a adder) Write(p []byte) (int, error) {
	a(int64(len(p)))
	return len(p), nil
}

// onlyReader hides that a reader can write itself, so that the size of the buffer counts.
type onlyReader struct{ io.Reader }

// trailer sums up all that is written to it but the last bytes, which are a sum.
type trailer struct {
	sum  hash.Hash
	last []byte
}

func newTrailer(sum hash.Hash) *trailer { return &trailer{sum: sum} }

func (t *trailer) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if n := len(t.last) - t.sum.Size(); n > 0 {
		t.sum.Write(t.last[:n])
		t.last = append(t.last[:0], t.last[n:]...)
	}
	return len(p), nil
}
