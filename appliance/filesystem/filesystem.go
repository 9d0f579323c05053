// Package filesystem checks that the file system of a directory can do what kthwd needs.
//
// Check tries each need with files of its own. exFAT and vfat lack hard links, modes and
// sockets; network and shared file systems lack one or another. Without the check, a start
// fails at the first such need, after it has written files, and with an error that blames
// permissions.
//
// The package imports no Kubernetes and no etcd.
package filesystem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/text"
)

// use is the flag that names a directory.
type use string

const (
	forData use = "--data-dir"      // the files and sockets of kthwd
	forEtcd use = "--etcd-data-dir" // etcd's data
)

// Check returns an error for each of the two directories whose file system lacks something.
// The error names each lack, and the type of the file system. A directory that does not exist
// is judged by the nearest parent that does. Check leaves nothing behind. An error that says
// nothing about the file system, such as a full disk, a read-only mount or a missing
// permission, is not reported.
func Check(data, etcd string) error {
	at, other := existing(data), existing(etcd)
	if device(at) == device(other) {
		return judge(data, at, forData, forEtcd)
	}
	return errors.Join(judge(data, at, forData), judge(etcd, other, forEtcd))
}

// judge tries in at what the uses need. The first of them names dir.
func judge(dir, at string, uses ...use) error {
	lacks := probe(at, uses)
	if len(lacks) == 0 {
		return nil
	}
	kind, mount := typeOf(at)
	said := fmt.Errorf("%s=%s: the file system (%s, mounted at %s) has no %s", uses[0], dir, kind, mount, strings.Join(lacks, ", no "))
	return advice.With(said, fmt.Sprintf("choose a directory on ext4, xfs or btrfs with %s; findmnt -T %s shows the file system", uses[0], text.ShellWord(at)))
}

// existing is dir, or the nearest parent that exists.
func existing(dir string) string {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil || at == filepath.Dir(at) {
			return at
		}
	}
}

// device is the file system of a path, or 0.
func device(path string) uint64 {
	var stat unix.Stat_t
	_ = unix.Stat(path, &stat)
	return stat.Dev
}

// needs are tried in this order, with the same file: without one, the later ones still count.
var needs = []struct {
	name string
	uses []use
	try  func(p *place) error
}{
	{"file modes", both, (*place).mode},
	{"file owners", both, (*place).owner},
	{"rename over a file", both, (*place).rename},
	{"hard links", []use{forData}, (*place).link},
	{"file locks", both, (*place).lock},
	{"unix sockets", []use{forData}, (*place).socket},
	{"fsync", both, (*place).sync},
	{"shared memory maps", []use{forEtcd}, (*place).mmap},
}

var both = []use{forData, forEtcd}

// place is a directory of the check's own. Everything goes through the open directory, so
// that nobody who can write to the parent can lead the check elsewhere.
type place struct {
	root *os.Root
	dir  *os.File
	file *os.File
}

const (
	fileName  = "file"
	otherName = "other"
)

// errLack stands for a need that was accepted and had no effect.
var errLack = errors.New("no effect")

// probe returns the names of the needs that the file system of the directory does not meet.
func probe(at string, uses []use) (lacks []string) {
	own, err := os.MkdirTemp(at, ".kthwd-check-")
	if err != nil {
		return lack(nil, "directories", err)
	}
	defer os.RemoveAll(own)
	_ = os.Chmod(own, 0o700) // regardless of the umask; modes are tried below
	p := &place{}
	defer p.close()
	if p.root, err = os.OpenRoot(own); err != nil {
		return nil
	}
	if p.dir, err = p.root.Open("."); err != nil {
		return nil
	}
	if names, _ := p.dir.Readdirnames(1); len(names) > 0 {
		return nil // not the directory that was just made: the owner of the parent has exchanged it
	}
	defer p.root.Remove(fileName)
	if p.file, err = p.root.OpenFile(fileName, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return lack(nil, "files", err)
	}
	if _, err := p.file.WriteString("kthwd\n"); err != nil {
		return lack(nil, "files", err)
	}
	for _, n := range needs {
		if slices.ContainsFunc(uses, func(u use) bool { return slices.Contains(n.uses, u) }) {
			lacks = lack(lacks, n.name, n.try(p))
		}
	}
	return lacks
}

// lack appends the name if err says that the file system cannot do it. Errors of a full or
// read-only disk, of permissions, and of the process's own limits say nothing about that.
func lack(lacks []string, name string, err error) []string {
	for _, is := range []error{errLack, unix.EPERM, unix.ENOTSUP, unix.ENOSYS, unix.EINVAL, unix.ENOTTY, unix.EMLINK, unix.ENODEV, unix.ENOLCK} {
		if errors.Is(err, is) {
			return append(lacks, name)
		}
	}
	return lacks
}

func (p *place) close() {
	for _, f := range []*os.File{p.file, p.dir} {
		if f != nil {
			f.Close()
		}
	}
	if p.root != nil {
		p.root.Close()
	}
}

// mode tries both values that matter: some file systems have one fixed mode.
func (p *place) mode() error {
	for _, want := range []os.FileMode{0o644, 0o600} {
		if err := p.file.Chmod(want); err != nil {
			return err
		}
		info, err := p.root.Stat(fileName)
		if err != nil {
			return err
		}
		if info.Mode().Perm() != want {
			return errLack
		}
	}
	return nil
}

func (p *place) owner() error {
	var stat unix.Stat_t
	if err := unix.Fstat(int(p.file.Fd()), &stat); err != nil {
		return err
	}
	if int(stat.Uid) != os.Geteuid() {
		return errLack
	}
	return nil
}

func (p *place) rename() error {
	f, err := p.root.OpenFile(otherName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	defer p.root.Remove(otherName)
	if err := p.root.Rename(fileName, otherName); err != nil {
		return err
	}
	return p.root.Rename(otherName, fileName)
}

func (p *place) link() error {
	defer p.root.Remove(otherName)
	return p.root.Link(fileName, otherName)
}

func (p *place) lock() error {
	return unix.Flock(int(p.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// socket goes through /proc: the address of a socket holds 107 bytes. Without /proc the
// sockets' own directory says so.
func (p *place) socket() error {
	path := fmt.Sprintf("/proc/self/fd/%d", p.dir.Fd())
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil // not for want of the file system
	}
	defer unix.Close(fd)
	defer p.root.Remove("socket")
	return unix.Bind(fd, &unix.SockaddrUnix{Name: path + "/socket"})
}

func (p *place) sync() error {
	return errors.Join(p.file.Sync(), p.dir.Sync())
}

// mmap is how etcd reads its database.
func (p *place) mmap() error {
	data, err := unix.Mmap(int(p.file.Fd()), 0, 1, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	return unix.Munmap(data)
}
