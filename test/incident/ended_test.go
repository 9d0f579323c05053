package incident

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// clock is the time of day in what kthwd says of the past.
const clock = `\d\d:\d\d`

// refused runs a controller that cannot start, and returns its output. wrap is put before
// its command line.
func refused(t *testing.T, dir string, ports kthwtest.Ports, wrap ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	c := kthwtest.Controller{Dir: dir, Address: "127.0.0.1", Ports: ports}
	argv := append(append(wrap, kthwtest.Binary(t)), c.Args()...)
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err == nil || ctx.Err() != nil {
		t.Fatalf("a start that is to be refused: got %v\n%s", err, &out)
	}
	return out.String()
}

// C14: nothing runs, and kthwd status tells the directory, the end of the last run and what
// to type. C12: the next start is refused, because it may open too few files; since when the
// controller is away, it says with the end of the last run.
func TestNothingRuns(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	stop(t, c)
	ended(t, incident{name: "C14 nothing runs", cause: "no process has " + c.Dir, do: "kthwd --role=controller"},
		statusText(t, c), "no process has "+c.Dir, `the last run: stopped in order at \S+ `+clock)
	out := refused(t, c.Dir, c.Ports, "sh", "-c", `ulimit -n 200 && exec "$@"`, "sh")
	ended(t, incident{name: "C12 too few open files", cause: "the limit is 200", do: "LimitNOFILE=65536"}, out, out, `the last run: stopped in order at \S+ `+clock)
}

// C8: the kernel has ended the process, because of a memory limit.
func TestOutOfMemory(t *testing.T) {
	kthwtest.Turn(t, 1)
	limited := memoryLimit(t, 96<<20)
	c := kthwtest.Start(t, kthwtest.Options{Wrap: limited, NoWait: true})
	if code := c.Wait(t, soon); code != -1 {
		t.Skipf("got exit code %d: this kernel did not end it", code)
	}
	const cause = "memory limit 96 MiB, an empty control plane needs 384 MiB"
	if said := statusText(t, c); !strings.Contains(said, cause) {
		t.Errorf("status without a process: got %s, want %q", said, cause)
	}
	next := kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports})
	look(t, next, incident{name: "C8 killed by the memory limit", kind: "last_run", cause: cause, do: "MemoryMax", bridge: "-"})

	// The kernel ends another process, and somebody this one: that is no lack of memory.
	hungry := exec.Command(limited[0], append(limited[1:], "tail", "/dev/zero")...)
	if err := hungry.Run(); err == nil {
		t.Fatal("a process with more than its limit of memory: got no error")
	}
	next.Signal(t, syscall.SIGKILL)
	next.Wait(t, soon)
	if said := statusText(t, next); !strings.Contains(said, "by SIGKILL: it left neither") {
		t.Errorf("a process that was killed beside another one without memory: got %s", said)
	}
}

// memoryLimit makes a control group with a limit, and returns what puts a command into it.
func memoryLimit(t *testing.T, limit int) []string {
	t.Helper()
	name := fmt.Sprintf("kthwd-incident-%d", os.Getpid())
	dir, file := filepath.Join("/sys/fs/cgroup", name), "memory.max"
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil { // version 1
		dir, file = filepath.Join("/sys/fs/cgroup/memory", name), "memory.limit_in_bytes"
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs control groups that it may make: %v", err)
	}
	t.Cleanup(func() { kthwtest.WaitFor(t, "an empty control group", soon, func() error { return os.Remove(dir) }) })
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0o644); err != nil {
		t.Skipf("needs control groups with memory limits: %v", err)
	}
	return []string{"sh", "-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, dir}
}

// C11: another process listens on the API server's port: which, and since when it runs.
func TestPortTaken(t *testing.T) {
	kthwtest.Turn(t, 1)
	dir, ports := filepath.Join(t.TempDir(), "data"), kthwtest.FreePorts(t, "127.0.0.1")
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(ports.Secure)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out := refused(t, dir, ports)
	ended(t, incident{name: "C11 port taken", cause: fmt.Sprintf("(process %d, started ", os.Getpid()), do: "choose another port with --secure-port"},
		out, out, `\(process \d+, started \S+ `+clock)
}
