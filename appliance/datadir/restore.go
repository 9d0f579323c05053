package datadir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
	"kthwd/appliance/pki"
)

// Restore is a prepared restore: new files and new data of etcd, complete and on the disk,
// beside those in use. Once Commit has written it, the restore is done, whatever happens:
// FinishRestore puts all in place, at the next start if need be. Every path is on the file
// system of its target.
type Restore struct {
	Files  string   `json:"files"`  // directory of the new files, in the data directory
	Aside  string   `json:"aside"`  // directory for the files that they replace, in the data directory
	Remove []string `json:"remove"` // names of files that have no place in the restored cluster; they go to Aside, too
	Member string   `json:"member"` // the new member directory, below etcd's directory; the old one has this name afterwards
	Inode  string   `json:"inode"`  // of the new member directory, which a change of its name keeps
}

// Commit records the restore, and leaves no record if it fails. The caller holds the lock, and calls
// FinishRestore next.
func (r Restore) Commit(l pki.Layout) (err error) {
	if r.Inode, err = Inode(r.Member); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	err = durable.Write(l.Restore(), append(data, '\n'), 0o600)
	if err != nil { // also when the file has its name, and its directory is not on the disk
		err = errors.Join(err, notThere(os.Remove(l.Restore())))
	}
	return err
}

// FinishRestore puts a committed restore in place, and reports whether there was one. The
// caller holds the lock. It can be repeated after it was interrupted at any moment.
func FinishRestore(l pki.Layout) (done bool, err error) {
	data, err := os.ReadFile(l.Restore())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var r Restore
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil {
		err = r.finish(l)
	}
	if err != nil {
		return false, advice.With(fmt.Errorf("finish the restore that %s describes: %w", l.Restore(), err), "remove the cause, then start kthwd, or run the restore again: both go on where it stopped")
	}
	return true, nil
}

func (r Restore) finish(l pki.Layout) error {
	if err := r.placeFiles(l); err != nil {
		return err
	}
	if err := r.placeMember(l); err != nil {
		return err
	}
	for _, dir := range []string{l.Etcd(), filepath.Dir(r.Member), l.Dir} {
		if err := durable.Sync(dir); err != nil {
			return err
		}
	}
	// Before restore.json: new files without it are those of a restore that may be undone.
	if err := errors.Join(os.RemoveAll(r.Files), durable.Sync(l.Dir)); err != nil {
		return err
	}
	if err := os.Remove(l.Restore()); err != nil {
		return err
	}
	return errors.Join(durable.Sync(l.Dir), removeEmpty(r.Aside), removeEmpty(r.Member), removeEmpty(filepath.Dir(r.Member)))
}

// placeFiles gives the new files their names, after those that they replace have moved.
func (r Restore) placeFiles(l pki.Layout) error {
	files, err := os.ReadDir(r.Files) // those that are gone have their names already
	if notThere(err) != nil {
		return err
	}
	if err := os.Mkdir(r.Aside, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, name := range r.Remove {
		if err := notThere(os.Rename(filepath.Join(l.Dir, name), filepath.Join(r.Aside, name))); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := r.placeFile(filepath.Join(r.Files, f.Name()), filepath.Join(l.Dir, f.Name())); err != nil {
			return err
		}
	}
	return errors.Join(durable.Sync(r.Aside), durable.Sync(l.Dir))
}

func (r Restore) placeFile(from, to string) error {
	if same(from, to) {
		return nil
	}
	aside := filepath.Join(r.Aside, filepath.Base(to))
	if err := notThere(os.Rename(to, aside)); err != nil {
		return err
	}
	return os.Link(from, to)
}

// same reports whether two files have the same content and permissions, or are the same.
func same(a, b string) bool {
	info, err := os.Lstat(b)
	other, err2 := os.Lstat(a)
	if err != nil || err2 != nil || info.Mode() != other.Mode() {
		return false
	}
	x, err := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	return err == nil && err2 == nil && bytes.Equal(x, y)
}

// placeMember exchanges the member directories in one system call. The inode tells whether
// that has happened.
func (r Restore) placeMember(l pki.Layout) error {
	member := filepath.Join(l.Etcd(), "member")
	inode, err := Inode(member)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.Rename(r.Member, member)
	case err != nil || SameInode(inode, r.Inode):
		return err
	}
	return Exchange(member, r.Member)
}

// removeEmpty removes a directory if nothing is in it.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func notThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Inode returns the device and the inode of path, which a change of its name keeps.
func Inode(path string) (string, error) {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino), nil
}

// SameInode compares what Inode returned for two directories of one file system, of which one may be
// from before a boot: the device of a file system may have another number after each.
func SameInode(a, b string) bool {
	_, x, _ := strings.Cut(a, ":")
	_, y, _ := strings.Cut(b, ":")
	return x == y && x != ""
}

// Exchange swaps the names of two directories in one system call.
func Exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return advice.With(fmt.Errorf("the file system of %s cannot exchange two directories", a),
			"copy etcd's directory to a disk with ext4, XFS or Btrfs and name it with --etcd-data-dir")
	}
	return err
}
