package lb

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/harness"
	"kthwd/test/lbtest"
)

// TestLateLoop stops one thread of a balancer, in which a loop waits for its connections.
// Everything else goes on, so only the watchdog can tell that some clients are served by
// nobody: systemd hears no more, and the log says why. When the thread runs again, all is
// well.
func TestLateLoop(t *testing.T) {
	sidesToRun(t)
	if runtime.GOARCH != "amd64" {
		t.Skip("knows the system calls of amd64 only")
	}
	dir := t.TempDir()
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "notify")})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	c := lbtest.Kthwd.Command(t, lbtest.Setup{Dir: dir, Listen: "127.0.0.1:6443", Backends: []string{"127.0.0.1:1"}, Args: []string{"--status-socket="}})
	c.Name, c.Namespace = "kthwd", lbtest.NewNamespace(t)
	c.Env = []string{"NOTIFY_SOCKET=" + systemd.LocalAddr().String(), "WATCHDOG_USEC=2000000"}
	p := lbtest.Start(t, c)
	feeds := make(chan struct{}, 1000)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := systemd.Read(buf)
			if err != nil {
				return
			}
			if strings.Contains(string(buf[:n]), "WATCHDOG=1") {
				feeds <- struct{}{}
			}
		}
	}()
	logged := func(text string) {
		t.Helper()
		harness.WaitFor(t, "the log has "+text, 3*time.Minute, func() error {
			if !strings.Contains(p.Log.Tail(1000), text) {
				return errors.New(p.Log.Tail(20))
			}
			return nil
		})
	}
	fed := func() {
		t.Helper()
		harness.WaitFor(t, "a report to systemd", 3*time.Minute, func() error {
			select {
			case <-feeds:
				return nil
			default:
				return errors.New(p.Log.Tail(20))
			}
		})
	}
	fed()
	fed()
	resume := stopLoop(t, p.PID)
	logged("loops do not respond")
	logged("not alive, systemd will restart kthwd")
	for len(feeds) > 0 {
		<-feeds
	}
	resume()
	fed()
	logged("alive again")
}

// stopLoop stops a thread of a process in which a loop of the balancer waits. The function
// that it returns lets it run on.
func stopLoop(t *testing.T, pid int) (resume func()) {
	t.Helper()
	stopped, on, done := make(chan error, 1), make(chan struct{}), make(chan struct{})
	tid := 0
	harness.WaitFor(t, "a loop waits", 3*time.Minute, func() error {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", pid))
		for _, task := range tasks {
			call, _ := os.ReadFile(task + "/syscall")
			// A loop waits for 256 events at most (lb/loop.go), and Go's poller for 128 (runtime/netpoll_epoll.go).
			if words := strings.Fields(string(call)); len(words) > 3 && words[0] == fmt.Sprint(unix.SYS_EPOLL_PWAIT) && words[3] == "0x100" {
				_, err := fmt.Sscan(filepath.Base(task), &tid)
				return err
			}
		}
		return errors.New("none")
	})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the tracer is a thread
		defer runtime.UnlockOSThread()
		err := unix.PtraceSeize(tid)
		if err == nil {
			err = unix.PtraceInterrupt(tid)
		}
		if err == nil {
			var status unix.WaitStatus
			_, err = unix.Wait4(tid, &status, unix.WALL, nil)
		}
		stopped <- err
		<-on
		_ = unix.PtraceDetach(tid)
	}()
	if err := <-stopped; err != nil {
		close(on)
		t.Fatalf("stop thread %d: %v", tid, err)
	}
	resume = func() {
		close(on)
		<-done
	}
	return resume
}
