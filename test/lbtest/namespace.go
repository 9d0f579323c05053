package lbtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a separate network with lo up. Nil means that of the test.
type Namespace struct {
	calls chan func()
	tid   int
	fd    int // refers to the namespace
}

// NewNamespace creates a namespace that lasts as long as the test or a process in it.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	n, err := OpenNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range n.Processes() { // processes left over
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		close(n.calls)
		unix.Close(n.fd)
	})
	return n
}

// OpenNamespace creates a namespace that lasts as long as this process or one in it, for
// TestMain.
func OpenNamespace() (*Namespace, error) {
	n := &Namespace{calls: make(chan func())}
	made := make(chan error)
	go n.live(made)
	if err := <-made; err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	return n, nil
}

// live runs the thread inside the namespace, which never leaves it and ends with it.
func (n *Namespace) live(made chan error) {
	runtime.LockOSThread()
	n.tid = unix.Gettid()
	err := unix.Unshare(unix.CLONE_NEWNET)
	if err == nil {
		err = loopbackUp()
	}
	if err == nil {
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
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

// Dial connects from inside the namespace. Concurrent calls are allowed.
func (n *Namespace) Dial(ctx context.Context, address string) (net.Conn, error) {
	if n == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(home)
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("setns: %w", err)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		panic(fmt.Sprintf("a thread does not find back to its network: %v", err))
	}
	return conn, err
}

// Run runs a program in the namespace, and fails the test if the program fails.
func (n *Namespace) Run(t testing.TB, argv ...string) {
	t.Helper()
	var out []byte
	var err error
	n.Do(func() { out, err = exec.Command(argv[0], argv[1:]...).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// Processes returns the processes in the namespace, except this one.
func (n *Namespace) Processes() []int {
	var ours unix.Stat_t
	if err := unix.Fstat(n.fd, &ours); err != nil {
		return nil
	}
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var st unix.Stat_t
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && pid != os.Getpid() && unix.Stat(dir+"/ns/net", &st) == nil && st.Ino == ours.Ino && st.Dev == ours.Dev {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Path returns a file that refers to the namespace, for ip link set netns.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), n.tid)
}

// Sysctl sets a setting of the namespace, such as net/ipv4/ip_local_port_range.
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

// ListenLosses returns how often the kernel of a namespace had no room for a connection in
// the queue of a listener, and how many it dropped for that and other reasons.
func ListenLosses(t testing.TB, n *Namespace) (overflows, drops int) {
	t.Helper()
	var text []byte
	var err error
	n.Do(func() { text, err = os.ReadFile("/proc/thread-self/net/netstat") })
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "TcpExt:" {
			continue
		}
		if names == nil {
			names = words
			continue
		}
		for i, name := range names {
			value, _ := strconv.Atoi(words[i])
			switch name {
			case "ListenOverflows":
				overflows = value
			case "ListenDrops":
				drops = value
			}
		}
		return overflows, drops
	}
	t.Fatalf("no TcpExt in %s", text)
	return 0, 0
}
