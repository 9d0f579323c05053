// Package e2e runs whole clusters: the real kthwd with the real kubectl, the
// guide's own ports and paths, real worker nodes.
//
//	make test-e2e                                        # as root; without, parts are skipped with a reason
//	KTHWD_E2E=1 go test ./test/e2e -v -run TestRealNode  # with the Makefile's environment
//
// A test that needs fixed ports or paths has a machine of its own: onOwnMachine
// runs it again as the first process of fresh network, mount, process and host
// name namespaces, with empty /etc, /run, /var/lib and /var/log. They end with
// that process, and what runs or is mounted in them ends with them.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

const (
	machineEnv = "KTHWD_E2E_MACHINE" // the test that this process is the machine of
	hostName   = "controller-0"
)

// requireE2E skips what make test leaves out.
func requireE2E(t *testing.T) {
	t.Helper()
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skip("KTHWD_E2E is not set: run make test-e2e")
	}
}

// onOwnMachine tells whether the test runs on a machine of its own, whose one
// address is address, such as 10.0.1.73/24. When it does not, the test has been
// run on one when this returns, and has nothing left to do. pkgs are the
// programs of go.mod that it uses besides kubectl.
func onOwnMachine(t *testing.T, address string, pkgs ...string) bool {
	t.Helper()
	requireE2E(t)
	if os.Getenv(machineEnv) == t.Name() {
		setUpMachine(t, address)
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for namespaces of its own")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (Debian: iproute2)")
	}
	tools := filepath.Dir(kthwtest.Kubectl(t))
	for _, pkg := range pkgs {
		kthwtest.Tool(t, pkg)
	}
	runMachine(t, append(os.Environ(), machineEnv+"="+t.Name(),
		"KTHWD_BIN="+kthwtest.Binary(t), "KTHWD_TOOLS="+tools, "TMPDIR="+t.TempDir(), "HOME="+t.TempDir()))
	return false
}

// runMachine runs the test's process in namespaces of its own.
func runMachine(t *testing.T, env []string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	atMost := "10m"
	if os.Getenv(rotationEnv) != "" {
		atMost = "70m"
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout="+atMost)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL, // the machine does not outlive a test that is killed
	}
	runtime.LockOSThread() // the death signal is about the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		t.Errorf("%s on a machine of its own: %v", t.Name(), err)
	}
}

// setUpMachine gives the new namespaces what a machine has.
func setUpMachine(t *testing.T, address string) {
	t.Helper()
	mount := func(source, target, kind string, flags uintptr) {
		if err := syscall.Mount(source, target, kind, flags, ""); err != nil {
			t.Fatalf("mount %s: %v", target, err)
		}
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE)
	mount("proc", "/proc", "proc", 0)
	kept := map[string]string{} // the kubelet wants to know whose machine it is on
	for _, file := range []string{"/etc/passwd", "/etc/group", "/etc/os-release", "/etc/nsswitch.conf"} {
		if data, err := os.ReadFile(file); err == nil {
			kept[file] = string(data)
		}
	}
	for _, dir := range []string{"/etc", "/run", "/var/lib", "/var/log"} {
		mount("tmpfs", dir, "tmpfs", 0)
	}
	kept["/etc/hosts"] = "127.0.0.1 localhost\n::1 localhost\n"
	for file, content := range kept {
		writeFile(t, file, content)
	}
	if err := syscall.Sethostname([]byte(hostName)); err != nil {
		t.Fatal(err)
	}
	setUpNetwork(t, address)
}

func setUpNetwork(t *testing.T, address string) {
	t.Helper()
	run(t, "ip", "link", "set", "lo", "up")
	// A bridge without ports serves as network card: a dummy is a module that not every kernel has.
	run(t, "ip", "link", "add", "eth0", "type", "bridge")
	run(t, "ip", "address", "add", address, "dev", "eth0")
	run(t, "ip", "link", "set", "eth0", "up")
	run(t, "ip", "route", "add", "default", "dev", "eth0")
}

// run runs a program that has to succeed and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// stop asks kthwd to stop, which has to succeed.
func stop(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	c.Signal(t, syscall.SIGTERM)
	if code := c.Wait(t, kthwtest.Soon); code != 0 {
		t.Fatalf("exit code after SIGTERM: got %d, want 0\n%s", code, c.Log.Tail(30))
	}
}

// wantAll fails for each part that text lacks.
func wantAll(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("lacks %q:\n%s", part, text)
		}
	}
}

// lacks is a condition for kthwtest.WaitFor.
func lacks(text, part string) error {
	if strings.Contains(text, part) {
		return nil
	}
	return fmt.Errorf("lacks %q: %s", part, text)
}
