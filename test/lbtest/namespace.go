package lbtest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network of its own with lo up. A nil one is the test's.
type Namespace struct {
	calls chan func()
	tid   int
}

// NewNamespace makes one that lasts as long as the test or a process in it.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	n := &Namespace{calls: make(chan func())}
	made := make(chan error)
	go n.live(made)
	if err := <-made; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.calls) })
	return n
}

// live is the thread that is in the namespace; it never leaves it, and ends with it.
func (n *Namespace) live(made chan error) {
	runtime.LockOSThread()
	n.tid = unix.Gettid()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		err = loopbackUp()
	}
	made <- err
	if err != nil {
		return
	}
	for call := range n.calls {
		call()
	}
}

// Do calls f on a thread in the namespace. Sockets made and processes started
// by f are in the namespace; goroutines started by f are not.
func (n *Namespace) Do(f func()) {
	if n == nil {
		f()
		return
	}
	done := make(chan struct{})
	n.calls <- func() {
		defer close(done)
		f()
	}
	<-done
}

// Path is a file that stands for the namespace, for ip link set netns.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), n.tid)
}

// Sysctl sets one of the namespace's own settings, such as net/ipv4/ip_local_port_range.
func (n *Namespace) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	n.Do(func() {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			t.Errorf("sysctl %s: %v", name, err)
		}
	})
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request)
}
