package fault

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"kthwd/test/kthwtest"
)

// TestPortNamesTheProcess takes a port of kthwd, at its own address and at all of them: the
// hint names this test's process.
func TestPortNamesTheProcess(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", ""} {
		a := attempt{dir: filepath.Join(t.TempDir(), "data"), ports: kthwtest.FreePorts(t, "127.0.0.1")}
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, a.ports.Secure))
		if err != nil {
			t.Fatal(err)
		}
		a.run(t).check(t, 1, fmt.Sprintf("(process %d) listens on", os.Getpid()), fmt.Sprint(a.ports.Secure))
		l.Close()
	}
}

// TestTooFewOpenFiles: a limit that is too low for a control plane is refused before
// anything is made, and found by kthwd preflight.
func TestTooFewOpenFiles(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	limited := func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", `ulimit -n 200 && exec "$@"`, "sh", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}
	a := attempt{dir: dir, ports: kthwtest.FreePorts(t, "127.0.0.1"), prepare: limited}
	a.run(t).check(t, 1, "LimitNOFILE=65536", "the limit is 200", "needs 512")
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the data directory: got %v, want none made", err)
	}
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), "preflight", "--role=controller", "--config=", "--data-dir="+dir)
	limited(cmd)
	out, err := cmd.Output()
	if err == nil || !regexp.MustCompile(`(?m)^open files +fail .*512`).Match(out) {
		t.Errorf("kthwd preflight: got %v and\n%s", err, out)
	}
}
