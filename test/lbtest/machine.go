package lbtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

const (
	machineEnv = "KTHWD_LB_MACHINE" // the test that this process is the machine of
	helperEnv  = "KTHWD_LB_HELPER"  // the helper that this process is
)

// Helper is a program within the test's binary.
type Helper func(args []string) error

// Main is TestMain's: it runs the tests, or the helper that this process is.
func Main(m *testing.M, helpers map[string]Helper) {
	name := os.Getenv(helperEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	helper, known := helpers[name]
	if !known {
		fmt.Fprintf(os.Stderr, "no helper %q\n", name)
		os.Exit(2)
	}
	if err := helper(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// OwnMachine tells whether the test runs on a machine of its own. When it does
// not, the test has been run on one when this returns, and has nothing left to
// do. What it prints goes to standard output as it is. args
// are further arguments for that run, such as -test.parallel=4. Needs root.
func OwnMachine(t *testing.T, args ...string) bool {
	t.Helper()
	if os.Getenv(machineEnv) == t.Name() {
		setUpMachine(t)
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args = append(args, "-test.run=^"+t.Name()+"$", "-test.v")
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+(time.Until(deadline)-time.Second).String())
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), machineEnv+"="+t.Name())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL, // the machine does not outlive a test that is killed
	}
	runtime.LockOSThread() // the death signal is about the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		t.Errorf("%s on a machine of its own: %v", t.Name(), err)
	}
	return false
}

func setUpMachine(t *testing.T) {
	t.Helper()
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Fatalf("make mounts private: %v", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		t.Fatalf("mount /proc: %v", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil { // where sockets are that others would take
		t.Fatalf("mount /run: %v", err)
	}
}

// RaiseDescriptorLimit lets this process and what it starts have n descriptors,
// or as many as allowed, and returns how many that are.
func RaiseDescriptorLimit(t testing.TB, n uint64) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// Set it even when it is enough: only what was set is handed to children.
	wanted := syscall.Rlimit{Cur: n, Max: max(n, limit.Max)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &wanted) == nil {
		return int(n)
	}
	limit.Cur = min(n, limit.Max)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	return int(limit.Cur)
}

// PublicDir is a new directory that every user can read; those of t.TempDir
// cannot be entered by others.
func PublicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kthwd-lb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// PublicCopy copies a program to dir, for a user who cannot read it where it is.
func PublicCopy(t testing.TB, dir, program, name string) string {
	t.Helper()
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Self is the path of this test's binary, which holds the helpers.
func Self(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}
