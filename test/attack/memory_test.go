package attack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// M5, M6: another process of kthwd's user reads the keys from the memory of a controller.
// The controller runs as an ordinary user, in a directory whose sockets are reached through
// /proc/self/fd, which belongs to root where the memory is closed.
func TestMemoryIsClosed(t *testing.T) {
	t.Parallel()
	in, wrap := ordinary(t)
	dir := filepath.Join(in, strings.Repeat("d", 100), "data")
	port, err := kthwtest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(in, "lb.yaml")
	text := fmt.Sprintf("role: lb\nstatus-socket: ''\ncheck: tcp\nlisten: ['127.0.0.1:%d']\nbackend: ['127.0.0.1:1']\nallow-debugger: true\n", port)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	closed := kthwtest.Start(t, kthwtest.Options{Dir: dir, Wrap: wrap})
	try := func(c *kthwtest.Controller, file string) (string, error) {
		out, err := run(t, append(wrap, "sh", "-c", fmt.Sprintf("exec 3</proc/%d/%s", c.Cmd.Process.Pid, file))...)
		return out, err
	}
	files := []string{"environ", "maps", "mem", "fd"}
	for _, file := range files {
		if out, err := try(closed, file); err == nil || !strings.Contains(out, "ermission denied") {
			t.Errorf("a process of the same user opens %s: %v\n%s", file, err, out)
		}
	}
	if reviewed {
		return // it has no setting for a debugger, and the memory of no process is closed
	}
	open := kthwtest.Start(t, kthwtest.Options{Wrap: wrap, NoWait: true, File: file})
	kthwtest.WaitFor(t, "the load balancer's status", kthwtest.Soon, func() error { _, err := open.Status(); return err })
	for _, file := range files {
		if out, err := try(open, file); err != nil {
			t.Errorf("with allow-debugger, a process of the same user cannot open %s: %v\n%s", file, err, out)
		}
	}
	// Verbs that read keys, and the child process of a backup; each waits for its standard input.
	for _, verb := range [][]string{{"join", "-", "--config=", "--data-dir=" + filepath.Join(in, "joins")}, {"backup", "check", filepath.Join(in, "none"), in}} {
		cmd := exec.CommandContext(t.Context(), wrap[0], append(slices.Clone(wrap[1:]), append([]string{kthwtest.Binary(t)}, verb...)...)...)
		input, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		kthwtest.WaitFor(t, strings.Join(verb[:2], " ")+" to close its memory", kthwtest.Soon, func() error {
			out, err := run(t, append(wrap, "sh", "-c", fmt.Sprintf("exec 3</proc/%d/mem", cmd.Process.Pid))...)
			if err == nil || !strings.Contains(out, "ermission denied") {
				return fmt.Errorf("a process of the same user opens it: %v %s", err, out)
			}
			return nil
		})
		input.Close()
		_ = cmd.Wait() // it has nothing to do
	}
	if out, err := run(t, append(wrap, kthwtest.Binary(t), "status", "--data-dir="+dir)...); err != nil {
		t.Errorf("kthwd status as the same user: %v\n%s", err, out)
	}
}

func run(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

// ordinary returns a directory of an ordinary user and the words before a command line that
// run it as that user: none if the test is not root's. The binary must be in a directory
// that every user can search.
func ordinary(t *testing.T) (dir string, wrap []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return t.TempDir(), []string{"env"}
	}
	dir, err := os.MkdirTemp("", "kthwd-attack-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chown(dir, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	return dir, []string{"setpriv", fmt.Sprintf("--reuid=%d", stranger), fmt.Sprintf("--regid=%d", stranger), "--clear-groups"}
}
