// Package scratch is what a run of kthwd try has for itself: a directory that goes away with
// it, ports of 127.0.0.1, and the command that it runs.
//
//	dir, err := scratch.New(scratch.Places(), room)
//	defer dir.Remove()
//	ports, err := scratch.Claim(6)
//	defer ports.Release()
//	code, err := scratch.Command{Path: path, Args: args, Env: env}.Run(signals, gone)
//
// A run that is killed can remove nothing. The kernel gives up its claims: the lock on its
// directory, by which Sweep in a later run knows the directory as left behind, and the name
// of its ports. So no number of a process, which another one may have by then, decides.
package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
)

const (
	prefix   = "kthwd-try-"
	lockFile = "lock"
	keepFile = "keep"

	// locked is far more time than a run needs from making its directory to locking it.
	locked = time.Minute
)

// name matches the directories that New makes.
var name = regexp.MustCompile("^" + prefix + "[0-9]+$")

// Dir is the directory of one run.
type Dir struct {
	Path string

	lock *os.File
	kept bool
}

// Places are the directories in which a run may put its own, the best first: TMPDIR alone if
// the user has set it, else memory, which needs no disk, and then /tmp.
func Places() []string {
	if own := os.Getenv("TMPDIR"); own != "" {
		return []string{own}
	}
	return []string{"/dev/shm", os.TempDir()}
}

// New makes a directory for its user only, in the first of places that can be written and
// has room bytes. The error has the reason for each place.
func New(places []string, room uint64) (*Dir, error) {
	var errs []error
	for _, place := range places {
		err := usable(place, room)
		if err == nil {
			var d *Dir
			if d, err = in(place); err == nil {
				return d, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, advice.With(fmt.Errorf("no directory for temporary files: %w", sentence(errs)), fmt.Sprintf("name one with %d MiB: TMPDIR=DIR kthwd try …", room>>20))
}

// sentence puts the errors into one line.
func sentence(errs []error) error {
	var all error
	for _, err := range errs {
		if all == nil {
			all = err
		} else {
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

// usable reports why there is no room in a place.
func usable(place string, room uint64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(place, &s); err != nil {
		return &fs.PathError{Op: "statfs", Path: place, Err: err}
	}
	if free := s.Bavail * uint64(s.Bsize); free < room {
		return fmt.Errorf("%s has %d MiB free, %d MiB are needed", place, free>>20, room>>20)
	}
	return nil
}

// in makes a directory in place and locks it. Another run that sweeps at this moment may
// lock and remove it first.
func in(place string) (*Dir, error) {
	for {
		path, err := os.MkdirTemp(place, prefix)
		if err != nil {
			return nil, err
		}
		lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !flock(lock) {
			lock.Close()
			continue
		}
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(path))
		}
		return &Dir{Path: path, lock: lock}, nil
	}
}

func flock(f *os.File) bool {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// Keep makes Remove and the sweeps of later runs leave the directory.
func (d *Dir) Keep() error {
	d.kept = true
	return os.WriteFile(filepath.Join(d.Path, keepFile), nil, 0o600)
}

// Remove removes the directory, unless it is kept. Something in this process may still be
// writing there, so it repeats until nothing is left, for a few seconds at most.
func (d *Dir) Remove() error {
	defer d.lock.Close()
	if d.kept {
		return nil
	}
	return remove(d.Path)
}

func remove(path string) (err error) {
	const pause, most = 10 * time.Millisecond, 500
	for range most {
		if err = os.RemoveAll(path); err == nil {
			return nil
		}
		time.Sleep(pause)
	}
	return err
}

// Sweep removes the directories that runs of this user have left behind in places, and
// returns them. What belongs to someone else, is no directory, is kept or still has its run
// stays.
func Sweep(places []string) (removed []string) {
	for _, place := range places {
		entries, err := os.ReadDir(place)
		if err != nil {
			continue
		}
		for _, e := range entries {
			path := filepath.Join(place, e.Name())
			if name.MatchString(e.Name()) && own(path) && sweep(path) {
				removed = append(removed, path)
			}
		}
	}
	return removed
}

// own reports whether path is a directory of this user, and no link to one.
func own(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}

// sweep removes a directory whose run has ended. It holds the lock meanwhile.
func sweep(path string) bool {
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		info, err := os.Lstat(path)
		return err == nil && time.Since(info.ModTime()) > locked && os.RemoveAll(path) == nil
	case err != nil:
		return false
	}
	defer lock.Close()
	if !flock(lock) {
		return false
	}
	if _, err := os.Lstat(filepath.Join(path, keepFile)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return os.RemoveAll(path) == nil
}
