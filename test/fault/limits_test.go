package fault

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestPortNamesTheProcess takes a port of kthwd, at its own address and at all of them: the
// hint names this test's process.
func TestPortNamesTheProcess(t *testing.T) {
	kthwtest.Turn(t, 1)
	for _, host := range []string{"127.0.0.1", ""} {
		a := attempt{dir: filepath.Join(t.TempDir(), "data"), ports: kthwtest.FreePorts(t, "127.0.0.1")}
		l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, a.ports.Secure))
		if err != nil {
			t.Fatal(err)
		}
		a.run(t).check(t, 1, fmt.Sprintf("(process %d, started ", os.Getpid()), fmt.Sprint(a.ports.Secure))
		l.Close()
	}
}

// TestLowLimits: a limit of the kernel that is too low for a control plane is refused before
// anything is made, with need and have, and found by kthwd preflight.
func TestLowLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		option string // of prlimit
		error  []string
		hint   string
		line   string // of preflight
	}{
		{"--nofile=200:200", []string{"the limit is 200", "needs 512"}, "LimitNOFILE=65536", `(?m)^open files +fail .*512`},
		{"--fsize=4194304", []string{"the limit is 4 MiB", "needs 128 MiB"}, "LimitFSIZE", `(?m)^file size +fail .*128 MiB`},
		{"--data=367001600", []string{"the limit is 350 MiB", "needs 512 MiB"}, "LimitDATA", `(?m)^data size +fail .*512 MiB`},
		{"--as=8589934592", []string{"the limit is 8.0 GiB", "needs 10.8 GiB"}, "LimitAS", `(?m)^address space +fail .*10.8 GiB`},
		{"--nproc=40:40", []string{"is 40, with", "needs 64"}, "LimitNPROC", `(?m)^threads +fail .*64`},
	} {
		t.Run(tt.option, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			dir := anyonesDir(t)
			limited := func(cmd *exec.Cmd) {
				wrap := []string{"prlimit", tt.option, "--"}
				if os.Geteuid() == 0 && strings.HasPrefix(tt.option, "--nproc") { // which binds others only
					wrap = append([]string{"setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"}, wrap...)
				}
				path, err := exec.LookPath(wrap[0])
				if err != nil {
					t.Skip(err)
				}
				cmd.Args = append(append(wrap, cmd.Path), cmd.Args[1:]...)
				cmd.Path = path
			}
			a := attempt{dir: dir, ports: kthwtest.FreePorts(t, "127.0.0.1"), prepare: limited}
			a.run(t).check(t, 1, tt.hint, tt.error...)
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("the data directory: got %v, want none made", err)
			}
			cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), "preflight", "--role=controller", "--config=", "--data-dir="+dir)
			limited(cmd)
			out, err := cmd.CombinedOutput()
			if err == nil || !regexp.MustCompile(tt.line).Match(out) {
				t.Errorf("kthwd preflight: got %v and\n%s", err, out)
			}
		})
	}
}

// anyonesDir is the path of a data directory that any user may make.
func anyonesDir(t *testing.T) string {
	t.Helper()
	above := openDir(t)
	if err := os.Chmod(above, os.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(above, "data")
}
