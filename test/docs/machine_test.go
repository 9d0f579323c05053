package docs

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

const (
	machineEnv = "KTHWD_DOCS_MACHINE"   // the name of the machine that this process acts as
	address    = "10.0.1.48"            // the guide's first controller
	guideDir   = "/var/lib/kubernetes"  // where the guide puts its files
	machineDir = "KTHWD_DOCS_DIRECTORY" // the copy of the checkout
	notAllowed = 77                     // exit code of a machine that cannot be set up
)

// guideFiles are the files that part 3 of the guide copies into guideDir. Its keys come
// from cfssl and kubectl, which create them with mode 0600; the encryption configuration
// comes from a heredoc, which does not.
var guideFiles = map[string]fs.FileMode{
	"ca.pem": 0o644, "ca-key.pem": 0o600, "kubernetes.pem": 0o644, "kubernetes-key.pem": 0o600,
	"service-account.pem": 0o644, "service-account-key.pem": 0o600, "encryption-config.yaml": 0o644,
	"kube-controller-manager.kubeconfig": 0o600, "kube-scheduler.kubeconfig": 0o600,
}

// runMachine runs the pages of one machine in separate namespaces, where the guide's
// ports and paths are free. Without root it is root in a user namespace.
func runMachine(t *testing.T, name string) {
	for _, program := range []string{"ip", "curl", "make"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
	for _, own := range []string{"/var/lib/", "/mnt/"} {
		if home, _ := os.UserHomeDir(); strings.HasPrefix(home, own) || strings.HasPrefix(kthwtest.Root(), own) {
			t.Skipf("needs %s for itself, and the checkout or the home directory is there", own)
		}
	}
	dir := copyCheckout(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestCommands$", "-test.v", "-test.timeout=8m")
	cmd.Env = append(withoutMake(os.Environ()), machineEnv+"="+name, machineDir+"="+dir, "NO_COLOR=1",
		"PATH="+filepath.Join(dir, "path")+":"+os.Getenv("PATH"))
	cmd.Env = append(cmd.Env, stamps(t)...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL, // the machine dies with a killed test
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	runtime.LockOSThread() // the death signal follows the thread, not the process
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Skipf("needs namespaces of its own, which this machine does not give: %v", err)
	}
	err = cmd.Wait()
	if cmd.ProcessState.ExitCode() == notAllowed {
		t.Skip("needs namespaces of its own, in which this machine allows nothing")
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// copyCheckout makes a fresh clone: the sources and the output of the first build. Its
// directory path has the programs that the pages expect in the PATH.
func copyCheckout(t *testing.T) string {
	t.Helper()
	dir, root := t.TempDir(), kthwtest.Root()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", ".kthwd", "bin", "dist"}, name):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dir, name), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bin", "path"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "bin", "kthwd")
	run(t, "cp", kthwtest.Binary(t), binary)
	for name, target := range map[string]string{"kthwd": binary, "kubectl": kthwtest.Kubectl(t)} {
		if err := os.Symlink(target, filepath.Join(dir, "path", name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// withoutMake drops the variables that a make running this test passes to its submakes.
func withoutMake(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "MFLAGS")
	})
}

// stamps are the versions in the binary, so that make does not link it again in a copy
// without history.
func stamps(t *testing.T) []string {
	t.Helper()
	var v struct{ Kthwd, Commit string }
	if err := json.Unmarshal([]byte(run(t, kthwtest.Binary(t), "version", "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	date := "0"
	if out, err := exec.Command("git", "-C", kthwtest.Root(), "log", "-1", "--format=%ct").Output(); err == nil {
		date = strings.TrimSpace(string(out))
	}
	return []string{"VERSION=" + v.Kthwd, "COMMIT=" + v.Commit, "SOURCE_DATE_EPOCH=" + date}
}

// setUpMachine sets up the new namespaces like the guide's controller. The commands run in dir; home has the
// files of the guide's second part, with keys of administrators.
func setUpMachine(t *testing.T) (dir, home string) {
	t.Helper()
	dir = os.Getenv(machineDir)
	switch err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); {
	case errors.Is(err, fs.ErrPermission): // AppArmor, for example, allows a user namespaces but no rights in them
		os.Exit(notAllowed)
	case err != nil:
		t.Fatal(err)
	}
	hidden := []string{"/run", "/var/lib", "/mnt"}
	if _, err := os.Stat("/etc/kthwd"); err == nil {
		hidden = append(hidden, "/etc/kthwd") // kthwd would read a configuration there
	}
	for _, path := range hidden {
		if err := syscall.Mount("tmpfs", path, "tmpfs", 0, ""); err != nil {
			t.Fatalf("mount %s: %v", path, err)
		}
	}
	if err := syscall.Sethostname([]byte("controller-0")); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "address", "add", address+"/32", "dev", "lo")
	run(t, "ip", "route", "add", "default", "dev", "lo", "src", address)

	home = t.TempDir() // where the guide's second part was run
	run(t, "kthwd", "pki", "init", "--data-dir="+home, "--advertise-address="+address, "--subject-alt-name="+strings.Join(neighbours, ","))
	startNeighbours(t, home)
	if err := os.Mkdir(guideDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range guideFiles {
		data, err := os.ReadFile(filepath.Join(home, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(guideDir, name), data, mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir, home
}

// run runs a program that must succeed and returns its output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
