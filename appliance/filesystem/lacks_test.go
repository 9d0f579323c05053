package filesystem

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// without runs do on a thread whose kernel answers the system calls with the error. With the
// error 0 a call succeeds and has no effect.
func without(t *testing.T, answer unix.Errno, calls []uint32, do func()) {
	t.Helper()
	const number = 0 // offset in struct seccomp_data
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number}}
	for i, call := range calls {
		filter = append(filter, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(calls) - i), K: call})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(answer)})
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the filter with it
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&program))); errno != 0 {
				err = errno
			}
		}
		if err == nil {
			do()
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		t.Skipf("no seccomp here: %v", err)
	}
}

// The kernel has no file system for each lack, so it is made to refuse the calls.
func TestCheckNamesEachLack(t *testing.T) {
	for _, test := range []struct {
		lack   string
		answer unix.Errno
		calls  []uint32
		etcd   bool // etcd's directory needs it, too
	}{
		{"hard links", unix.EPERM, []uint32{unix.SYS_LINKAT}, false}, // vfat, exFAT
		{"file modes", 0, []uint32{unix.SYS_FCHMOD}, true},           // vfat with the option quiet
		{"file modes", unix.EPERM, []uint32{unix.SYS_FCHMOD}, true},  // vfat
		{"unix sockets", unix.EPERM, []uint32{unix.SYS_BIND}, false}, // vfat, exFAT
		{"file locks", unix.ENOLCK, []uint32{unix.SYS_FLOCK}, true},  // NFS without its lock service
		{"fsync", unix.EINVAL, []uint32{unix.SYS_FSYNC}, true},
		{"rename over a file", unix.EINVAL, []uint32{unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2}, true},
	} {
		t.Run(test.lack, func(t *testing.T) {
			dir := t.TempDir()
			var data, etcd error
			without(t, test.answer, test.calls, func() {
				data = judge(dir, dir, forData)
				etcd = judge(dir, dir, forEtcd)
			})
			wantLack(t, data, "--data-dir="+dir, "has no "+test.lack)
			if (etcd != nil) != test.etcd {
				t.Errorf("etcd's directory: got %v", etcd)
			}
			wantNothingLeft(t, dir)
		})
	}
}

// All lacks of vfat are in one line.
func TestCheckNamesAllLacks(t *testing.T) {
	dir := t.TempDir()
	var err error
	without(t, unix.EPERM, []uint32{unix.SYS_LINKAT, unix.SYS_FCHMOD, unix.SYS_BIND}, func() { err = Check(dir, dir) })
	wantLack(t, err, "has no file modes, no hard links, no unix sockets")
}

// A file of somebody else is made where the server changes root into nobody.
func TestCheckOfOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a file away")
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := &place{file: f}
	if err := p.owner(); err != nil {
		t.Error(err)
	}
	if err := f.Chown(65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := p.owner(); !errors.Is(err, errLack) {
		t.Errorf("got %v", err)
	}
}
