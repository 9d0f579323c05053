package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/filesystem"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

// Foreign is the refusal to write into a directory of another user: that user can put
// symbolic links there, through which root would overwrite any file of the machine.
type Foreign struct {
	Dir  string
	User string // the name of the owner; the number if it has no name
	UID  int
}

func (f *Foreign) Error() string {
	return fmt.Sprintf("%s belongs to the user %s: kthwd writes nothing there as another user", f.Dir, f.User)
}

// Hint is the advice without the command line, which the program knows.
func (f *Foreign) Hint() string { return "run this as that user: " + f.Prefix() + " kthwd ..." }

// Prefix is the beginning of a command line that runs the rest as the owner.
func (f *Foreign) Prefix() string {
	if f.User == strconv.Itoa(f.UID) { // runuser(1) takes names only
		return fmt.Sprintf("setpriv --reuid=%d --clear-groups --", f.UID)
	}
	return "runuser -u " + f.User + " --"
}

// Owned refuses what a start refuses of the owners: a data directory, and one of etcd, of
// another user, and a data directory that others can write to.
func Owned(l pki.Layout) error { return owned(l) }

// owned refuses a data directory, and one of etcd, of another user, and one that others can
// write to or can exchange. Neither needs to exist.
func owned(l pki.Layout) error {
	for _, dir := range []string{l.Dir, l.Etcd()} {
		if err := ownedBy(dir, os.Geteuid()); err != nil {
			return err
		}
	}
	if misfit := pki.OpenToOthers(l.Dir); misfit != nil {
		return misfit
	}
	if err := openToOthers(l.Etcd(), 0); err != nil {
		return err
	}
	for _, dir := range []string{l.Dir, l.Etcd()} {
		if err := reachedSafely(dir, os.Geteuid()); err != nil {
			return err
		}
	}
	return nil
}

// reachedSafely refuses a path through a symbolic link of another user, and one below a directory
// that everybody can write to without a sticky bit: they could put another directory in the place
// of dir. A group that can write to a directory above is left to its administrator.
func reachedSafely(dir string, uid int) error {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if info, err := os.Lstat(at); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			if err := foreign(at, info, uid); err != nil {
				return err
			}
		}
		above := filepath.Dir(at)
		if above == at {
			return nil
		}
		if info, err := os.Stat(above); err == nil && info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return advice.With(fmt.Errorf("%s: writable by everybody (mode %04o), who can put another directory in the place of %s", above, info.Mode().Perm(), at),
				"chmod o-w "+text.ShellWord(above))
		}
	}
}

// ownedBy leaves a directory of root to the permissions: another user cannot write there.
func ownedBy(dir string, uid int) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil || !info.IsDir() {
		return err
	}
	return foreign(dir, info, uid)
}

// foreign is a *Foreign if the file belongs neither to the user nor to root.
func foreign(dir string, info fs.FileInfo, uid int) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == uid || stat.Uid == 0 {
		return nil
	}
	number := strconv.Itoa(int(stat.Uid))
	f := &Foreign{Dir: dir, User: number, UID: int(stat.Uid)}
	if u, err := user.LookupId(number); err == nil {
		f.User = u.Username
	}
	return f
}

// Private refuses a directory, such as one of backups, of another user, and one that others can
// write to: root would follow the links that they put there, or take their files for its own. It
// does not need to exist.
func Private(dir string) error {
	if err := ownedBy(dir, os.Geteuid()); err != nil {
		return err
	}
	return openToOthers(dir, 0)
}

// Steady is Private for a directory of which only the caller's own new files matter: a sticky bit
// keeps others from an exchange of those.
func Steady(dir string) error {
	if err := ownedBy(dir, os.Geteuid()); err != nil {
		return err
	}
	return openToOthers(dir, fs.ModeSticky)
}

// Unshared refuses a directory whose files another user could exchange: a symbolic link, a directory of
// another user, one that others can write to, or one in whose place others can put another. It does not
// need to exist.
func Unshared(dir string) error {
	if err := NoLinks(dir); err != nil {
		return err
	}
	if err := Private(dir); err != nil {
		return err
	}
	return reachedSafely(dir, os.Geteuid())
}

// openToOthers leaves out directories with one of the bits unless.
func openToOthers(dir string, unless fs.FileMode) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm()&0o022 == 0 || info.Mode()&unless != 0 {
		return nil
	}
	return advice.With(fmt.Errorf("%s: writable by group or others (mode %04o), who can replace the files in it", dir, info.Mode().Perm()),
		"chmod go-w "+text.ShellWord(dir))
}

// Usable refuses a data directory that cannot be written to or cannot be made, that belongs
// to another user, that others can write to, or whose file system lacks what kthwd needs. It
// leaves nothing changed.
func Usable(l pki.Layout) error {
	if err := writable(l); err != nil {
		return err
	}
	if err := owned(l); err != nil {
		return err
	}
	return filesystem.Check(l.Dir, l.Etcd())
}

func writable(l pki.Layout) error {
	at := l.Dir
	for !Exists(at) && at != filepath.Dir(at) {
		at = filepath.Dir(at)
	}
	err := unix.Access(at, unix.W_OK|unix.X_OK)
	if info, errStat := os.Stat(at); errStat == nil && !info.IsDir() {
		err = unix.ENOTDIR
	}
	if err == nil {
		return nil
	}
	if at == l.Dir {
		return advice.With(&fs.PathError{Op: "write to", Path: l.Dir, Err: err}, "the data directory must belong to the user that runs kthwd; or choose another with --data-dir")
	}
	return advice.With(&fs.PathError{Op: "mkdir", Path: l.Dir, Err: err}, "make the directory for the user that runs kthwd, or choose another with --data-dir")
}

// openOwn opens a file without following a symbolic link in its place.
func openOwn(path string, flag int, mode fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW, mode)
	if errors.Is(err, unix.ELOOP) {
		return nil, isLink(path)
	}
	return f, err
}

// NoLinks refuses a symbolic link in place of a file that somebody else opens, and follows it: one
// that is left from an earlier owner of the directory. None of the files needs to exist.
func NoLinks(paths ...string) error {
	for _, path := range paths {
		if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return isLink(path)
		}
	}
	return nil
}

func isLink(path string) error {
	return advice.With(fmt.Errorf("%s is a symbolic link, which kthwd does not follow", path), "find out who made it, then remove it")
}
