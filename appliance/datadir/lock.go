// Package datadir owns what kthwd keeps in its data directory beside certificates
// and etcd's data: the lock, the sockets, the identity, and the files that a join
// or a recovery leaves behind.
//
// Call Lock before anything in the directory is read or written. It keeps a second
// kthwd out; the verbs that work offline take it, too. NewSockets and Identity
// follow. Close the sockets before the lock.
//
// A Restore is what a restore has prepared beside the files in use. Commit begins the
// exchange, and FinishRestore ends it, also after a crash: call it after Lock, before
// anything else.
//
// Forget removes the record of a member, ForgetJoin the record from which a join could
// be repeated.
//
// Every path comes from pki.Layout. Package etcdfiles handles etcd's data.
package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"kthwd/appliance/advice"
	"kthwd/appliance/paths"
	"kthwd/appliance/pki"
)

// Lock locks the data directory for this process, and makes it if it is missing. It refuses
// a directory of another user (Foreign), and one that others can write to. The lock ends with
// the process; to release it earlier, the caller closes the file.
func Lock(l pki.Layout) (*os.File, error) {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return nil, advice.With(err, "make the directory for the user that runs kthwd, or choose another with --data-dir")
	}
	if err := owned(l); err != nil {
		return nil, err
	}
	f, err := openOwn(l.Lock(), os.O_RDWR|os.O_CREATE, 0o600)
	if _, ok := advice.Of(err); ok {
		return nil, err
	}
	if err != nil {
		return nil, advice.With(err, "the data directory must belong to the user that runs kthwd; or choose another with --data-dir")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", l.Lock(), err)
		}
		return nil, advice.With(fmt.Errorf("%s is in use by another kthwd (process %s)", l.Dir, strings.TrimSpace(string(holder))),
			"stop that one first, or choose another --data-dir")
	}
	return f, errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintln(os.Getpid())))
}

// Holder returns the process that holds the lock of the data directory, or 0. It takes
// no lock, so that it never keeps a kthwd from starting.
func Holder(l pki.Layout) int {
	text, info, errRead := paths.ReadRegular(l.Lock(), 32)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || errRead != nil {
		return 0
	}
	file, ok := info.Sys().(*syscall.Stat_t)
	locks, _ := os.ReadFile("/proc/locks")
	for line := range strings.Lines(string(locks)) { // 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF, proc_locks(5)
		f := strings.Fields(line)
		if ok && len(f) > 5 && f[1] == "FLOCK" && f[4] == strconv.Itoa(pid) && strings.HasSuffix(f[5], fmt.Sprintf(":%d", file.Ino)) {
			return pid
		}
	}
	return 0
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}
