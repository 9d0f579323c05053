package fault

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/appliance/lastrun"
	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// smallGroup makes a control group with a memory limit, and returns what puts a command
// into it.
func smallGroup(t *testing.T, limit int) (wrap []string) {
	t.Helper()
	name := fmt.Sprintf("kthwd-test-%d", os.Getpid())
	dir, file := filepath.Join("/sys/fs/cgroup", name), "memory.max"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil { // version 1
		dir, file = filepath.Join("/sys/fs/cgroup/memory", name), "memory.limit_in_bytes"
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs control groups that it may make: %v", err)
	}
	t.Cleanup(func() {
		kthwtest.WaitFor(t, "empty control group", time.Minute, func() error { return os.Remove(dir) })
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0o644); err != nil {
		t.Skipf("needs control groups with memory limits: %v", err)
	}
	return []string{"sh", "-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, dir}
}

// lastRun starts a controller on the directory of another, and returns what it says of
// that one's end.
func lastRun(t *testing.T, c *kthwtest.Controller) lastrun.End {
	t.Helper()
	next := again(t, c, kthwtest.Options{})
	r, err := next.Status()
	if err != nil || r.LastRun == nil {
		t.Fatalf("got %+v and %v, want how the last run ended", r.LastRun, err)
	}
	if log := next.Log.String(); !strings.Contains(log, "the last run: ") {
		t.Errorf("the log says nothing of the last run:\n%s", log)
	}
	for _, f := range r.Findings {
		if f.Kind == "last_run" && f.Health != status.Healthy {
			t.Errorf("got %+v; the end of a run that is over degrades nothing", f)
		}
	}
	stop(t, next, syscall.SIGTERM, 0)
	return *r.LastRun
}

// A run that the memory limit has ended is told by the next start: the limit, and what
// kthwd needs.
func TestKilledByTheMemoryLimit(t *testing.T) {
	kthwtest.Turn(t, 1)
	first := kthwtest.Start(t, kthwtest.Options{Wrap: smallGroup(t, 96<<20), NoWait: true})
	if code := first.Wait(t, 5*time.Minute); code != -1 {
		t.Skipf("got exit code %d: this kernel did not end it", code)
	}
	said, _ := exec.Command(kthwtest.Binary(t), "status", "--data-dir="+first.Dir).CombinedOutput()
	const want = "memory limit 96 MiB, an empty control plane needs 384 MiB"
	if !strings.Contains(string(said), want) {
		t.Errorf("status without a process: got %s, want %q", said, want)
	}
	if end := lastRun(t, first); end.Kind != lastrun.OutOfMemory || !strings.Contains(end.Text, want) {
		t.Errorf("got %+v, want %q", end, want)
	}
}

// Every other end is told, too.
func TestLastRun(t *testing.T) {
	kthwtest.Turn(t, 1)
	first := kthwtest.Start(t, kthwtest.Options{})
	if r, err := first.Status(); err != nil || r.LastRun != nil {
		t.Errorf("a new directory: got %+v and %v, want no last run", r.LastRun, err)
	}
	first.Signal(t, syscall.SIGKILL)
	first.Wait(t, time.Minute)
	if end := lastRun(t, first); end.Kind != lastrun.Killed {
		t.Errorf("after SIGKILL: got %+v", end)
	}
	if end := lastRun(t, first); end.Kind != lastrun.Stopped || !strings.Contains(end.Text, `"terminated"`) {
		t.Errorf("after SIGTERM: got %+v", end)
	}
	busy, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first.Ports.Secure)))
	if err != nil {
		t.Fatal(err)
	}
	refused := runToEnd(t, nil, first.Args()...)
	busy.Close()
	if end := lastRun(t, first); refused.code != 1 || end.Kind != lastrun.Failed || !strings.Contains(end.Text, "address already in use") {
		t.Errorf("after a start that was refused with exit code %d: got %+v", refused.code, end)
	}
	// Go answers SIGABRT, as systemd's watchdog sends it, with a trace.
	crash := exec.Command(kthwtest.Binary(t), first.Args()...)
	if err := crash.Start(); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "a process that is ready", 5*time.Minute, func() error {
		_, err := first.Status()
		return err
	})
	_ = crash.Process.Signal(syscall.SIGABRT)
	_ = crash.Wait()
	if end := lastRun(t, first); end.Kind != lastrun.Crashed || !strings.Contains(end.Text, "SIGABRT") {
		t.Errorf("after SIGABRT: got %+v", end)
	}
	if trace, err := os.ReadFile(lastrun.In(filepath.Join(first.Dir, "run")).CrashBefore()); err != nil || !strings.Contains(string(trace), "goroutine ") {
		t.Errorf("the trace is not kept: %v", err)
	}
}

// status of a directory without an answer names the directory, the process or the user,
// never a path that only another process can resolve.
func TestStatusWithoutAnAnswer(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	ask := func(who uint32, args ...string) (int, string) {
		args = append(args, "--config=", "--data-dir="+c.Dir)
		o := runToEnd(t, func(cmd *exec.Cmd) {
			if who != 0 {
				cmd.Dir = "/"
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: who, Gid: who}}
			}
		}, args...)
		if strings.Contains(o.stderr, "/proc/self") {
			t.Errorf("%s: got a path of another process:\n%s", strings.Join(args, " "), o.stderr)
		}
		return o.code, o.stderr
	}
	pid := fmt.Sprintf("process %d has %s", c.Cmd.Process.Pid, c.Dir)
	c.Signal(t, syscall.SIGSTOP)
	if code, said := ask(0, "status"); code != 2 || !strings.Contains(said, pid) || !strings.Contains(said, "ps -o pid") {
		t.Errorf("a process that is stopped: got exit code %d and:\n%s", code, said)
	}
	c.Signal(t, syscall.SIGCONT)
	socket := filepath.Join(c.Dir, "run", "kthwd.sock")
	if err := os.Rename(socket, socket+".away"); err != nil {
		t.Fatal(err)
	}
	if code, said := ask(0, "status"); code != 2 || !strings.Contains(said, pid) {
		t.Errorf("a process without its socket: got exit code %d and:\n%s", code, said)
	}
	if err := os.Rename(socket+".away", socket); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		const nobody = 65534
		for verb, want := range map[string]int{"status": 2, "log-level": 1, "member": 1} {
			args := []string{verb}
			if verb == "member" {
				args = append(args, "list")
			}
			if verb == "status" {
				args = append(args, "--metrics-address=")
			}
			if code, said := ask(nobody, args...); code != want || !strings.Contains(said, "sudo -u root kthwd "+verb) {
				t.Errorf("%s as another user: got exit code %d and:\n%s", verb, code, said)
			}
		}
	}
	stop(t, c, syscall.SIGTERM, 0)
	if code, said := ask(0, "status"); code != 2 || !strings.Contains(said, "the last run: stopped in order") {
		t.Errorf("after a stop: got exit code %d and:\n%s", code, said)
	}
}
