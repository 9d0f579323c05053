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
	machineEnv = "KTHWD_LB_MACHINE" // the test whose machine this process is
	helperEnv  = "KTHWD_LB_HELPER"  // the helper that this process runs
)

// Helper is a program inside the test's binary.
type Helper func(args []string) error

// Main runs the tests, or the helper of this process. Call it from TestMain.
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

// OwnMachine reports whether the test runs on a separate machine. If not, OwnMachine
// runs the test on one before it returns false, and the caller has nothing left to do.
// The output of that run goes to standard output unchanged. args are further arguments
// for that run, such as -test.parallel=4. It needs root.
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
		Pdeathsig:  syscall.SIGKILL, // the machine does not outlive a killed test
	}
	runtime.LockOSThread() // the death signal belongs to the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		t.Errorf("%s on its separate machine: %v", t.Name(), err)
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
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil { // hides the sockets of other processes
		t.Fatalf("mount /run: %v", err)
	}
}

// RaiseDescriptorLimit raises the limit of descriptors of this process and its children
// to n, or as far as allowed, and returns the new limit.
func RaiseDescriptorLimit(t testing.TB, n uint64) int {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	// Set it even if it suffices: children inherit only a limit that was set.
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

// PublicDir returns a new directory that every user can read; other users cannot enter
// those of t.TempDir.
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

// PublicCopy copies a program to dir, for users without access to the original.
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

// Self returns the path of this test's binary, which contains the helpers.
func Self(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}
