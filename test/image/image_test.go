// Package image runs the OCI image that make image makes.
package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// lacks skips the test where the machine lacks something, and fails it where nothing may lack.
func lacks(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("KTHWD_NO_SKIP") != "" {
		t.Fatalf("lacks %s", what)
	}
	t.Skipf("lacks %s", what)
}

// toolDir is where the tests find the program that tool builds. TestMain makes it.
var toolDir string

func TestMain(m *testing.M) {
	var err error
	if toolDir, err = os.MkdirTemp("", "kthwd-image"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(toolDir)
	os.Exit(code)
}

var buildTool = sync.OnceValues(func() ([]byte, error) {
	cmd := exec.Command("go", "build", "-o", filepath.Join(toolDir, "image"), ".")
	cmd.Dir = filepath.Join(kthwtest.Root(), "packaging", "image")
	return cmd.CombinedOutput()
})

// tool builds packaging/image, which is a module of its own, once for all tests.
func tool(t *testing.T) string {
	t.Helper()
	if out, err := buildTool(); err != nil {
		if bytes.Contains(out, []byte("dial tcp")) || bytes.Contains(out, []byte("module lookup disabled")) {
			lacks(t, "the modules of packaging/image")
		}
		t.Fatalf("build packaging/image: %v\n%s", err, out)
	}
	return filepath.Join(toolDir, "image")
}

// makeImage makes an archive of binaries, each ARCHITECTURE=FILE.
func makeImage(t *testing.T, tool, out string, env []string, binaries ...string) {
	t.Helper()
	cmd := exec.Command(tool, append([]string{"-version", "v1.2.3", "-label", "a=b", "-out", out}, binaries...)...)
	cmd.Env = append([]string{"SOURCE_DATE_EPOCH=1700000000"}, env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("image: %v\n%s", err, text)
	}
}

// The same binaries make the same bytes, whenever and wherever, and the index has an image for
// each architecture.
func TestReproducible(t *testing.T) {
	tool, dir := tool(t), t.TempDir()
	binary := filepath.Join(dir, "kthwd")
	if err := os.WriteFile(binary, bytes.Repeat([]byte("binary"), 1<<16), 0o755); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.Symlink(binary, other); err != nil {
		t.Fatal(err)
	}
	a, b := filepath.Join(dir, "a.tar"), filepath.Join(t.TempDir(), "b.tar")
	makeImage(t, tool, a, nil, "amd64="+binary, "arm64="+binary)
	makeImage(t, tool, b, []string{"TZ=Pacific/Kiritimati", "GOMAXPROCS=1"}, "amd64="+other, "arm64="+other)
	textA, errA := os.ReadFile(a)
	textB, errB := os.ReadFile(b)
	if err := errors.Join(errA, errB); err != nil || !bytes.Equal(textA, textB) {
		t.Errorf("two archives differ, of %d and %d bytes: %v", len(textA), len(textB), err)
	}
	files := untar(t, textA)
	var top, index struct {
		Manifests []struct {
			Digest   string
			Platform struct{ Architecture, OS string }
		}
	}
	read(t, files["index.json"], &top)
	if len(top.Manifests) != 1 {
		t.Fatalf("got %d entries in index.json, want the one index", len(top.Manifests))
	}
	read(t, files["blobs/"+strings.ReplaceAll(top.Manifests[0].Digest, ":", "/")], &index)
	var got []string
	for _, m := range index.Manifests {
		got = append(got, m.Platform.OS+"/"+m.Platform.Architecture)
	}
	if want := []string{"linux/amd64", "linux/arm64"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Bad input is refused, and leaves nothing behind.
func TestRefuses(t *testing.T) {
	tool, dir := tool(t), t.TempDir()
	out := filepath.Join(dir, "out.tar")
	for name, tt := range map[string]struct {
		env  string
		args []string
		want string
	}{
		"no date":     {"SOURCE_DATE_EPOCH=", []string{"-version=v1", "-out=" + out, "amd64=/bin/true"}, "SOURCE_DATE_EPOCH"},
		"no binary":   {"SOURCE_DATE_EPOCH=1", []string{"-version=v1", "-out=" + out}, "at least one"},
		"not there":   {"SOURCE_DATE_EPOCH=1", []string{"-version=v1", "-out=" + out, "amd64=" + dir + "/none"}, "no such file"},
		"no platform": {"SOURCE_DATE_EPOCH=1", []string{"-version=v1", "-out=" + out, "/bin/true"}, "ARCHITECTURE=BINARY"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(tool, tt.args...)
			cmd.Env = []string{tt.env}
			text, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(text), tt.want) {
				t.Errorf("got %v, want %q:\n%s", err, tt.want, text)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// untar returns the files of an archive.
func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err == nil {
			files[h.Name], err = io.ReadAll(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v: %q", err, data)
	}
}

// TestContainer runs the image in containerd: as PID 1 and an ordinary user, on a read-only
// root, in a network of its own without /etc/hosts.
func TestContainer(t *testing.T) {
	for _, program := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			lacks(t, program+" (Debian: containerd, runc)")
		}
	}
	if os.Geteuid() != 0 {
		lacks(t, "root, for containerd")
	}
	file := filepath.Join(t.TempDir(), "image.tar")
	makeImage(t, tool(t), file, nil, "amd64="+kthwtest.Binary(t))
	e := startEngine(t)
	e.must(t, "images", "import", file)

	e.prints(t, "kubernetes ", "/usr/bin/kthwd", "version")
	e.prints(t, "etcdctl version: ", "/usr/lib/kthwd/bin/etcdctl", "version")
	e.tries(t)
	e.controller(t)
}

// prints runs a program in a container of its own, in the network of the machine. ctr may end
// before it has copied all that a short program says.
func (e engine) prints(t *testing.T, want string, args ...string) {
	t.Helper()
	n := 0
	kthwtest.WaitFor(t, strings.Join(args, " "), time.Minute, func() error {
		n++
		id := fmt.Sprint(filepath.Base(args[0]), n)
		out := e.must(t, append([]string{"run", "--rm", "--read-only", "--net-host", "kthwd:v1.2.3", id}, args...)...)
		if !strings.Contains(out, want) {
			return fmt.Errorf("it prints %q", out)
		}
		return nil
	})
}

// tries runs kthwd try as PID 1, with memory for its files and without: the exit code is that of
// its command, in all three cases.
func (e engine) tries(t *testing.T) {
	t.Helper()
	room := []string{"--mount", "type=tmpfs,src=tmpfs,dst=/tmp,options=mode=1777"}
	n := 0
	try := func(flags []string, command ...string) (out string, code int) {
		n++
		id := fmt.Sprint("try", n)
		args := append(append([]string{"run", "--rm", "--read-only"}, flags...), "kthwd:v1.2.3", id, "/usr/bin/kthwd", "try", "--")
		cmd := e.command(append(args, command...)...)
		text, _ := cmd.CombinedOutput()
		return string(text), cmd.ProcessState.ExitCode()
	}
	kthwtest.WaitFor(t, "kthwd try in a container", kthwtest.Soon, func() error { // see prints
		out, code := try(room, "kubectl", "create", "configmap", "c", "--from-literal=a=b")
		if code != 0 {
			t.Fatalf("got exit code %d\n%s", code, out)
		}
		if !strings.Contains(out, "configmap/c created") {
			return fmt.Errorf("it prints %q", out)
		}
		return nil
	})
	if out, code := try(room, "kubectl", "get", "--raw", "/nothing"); code != 1 {
		t.Errorf("a command that fails: got exit code %d\n%s", code, out)
	}
	if out, code := try(nil, "kubectl", "get", "namespaces"); code != 1 {
		t.Errorf("no room on a read-only root: got exit code %d\n%s", code, out)
	}
}

// controller runs a controller in a container until it is asked to stop.
func (e engine) controller(t *testing.T) {
	t.Helper()
	cmd := e.command("run", "--read-only", "--mount", "type=tmpfs,src=tmpfs,dst=/var/lib/kubernetes,options=mode=0700:uid=65532:gid=65532",
		"kthwd:v1.2.3", "c1", "/usr/bin/kthwd", "--role=controller", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--health-address=127.0.0.1:8080")
	log, gone := &kthwtest.Log{}, make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		_, _ = e.try("task", "kill", "--signal", "SIGKILL", "c1")
		<-gone
		_, _ = e.try("containers", "rm", "c1")
		if t.Failed() {
			t.Logf("log of the container:\n%s", log.Tail(60))
		}
	})
	execs := 0
	inside := func(args ...string) (string, error) {
		execs++
		return e.try(append([]string{"task", "exec", "--exec-id", fmt.Sprint("x", execs), "c1"}, args...)...)
	}
	kthwtest.WaitFor(t, "controller in the container", 4*time.Minute, func() error {
		select {
		case <-gone:
			t.Fatal("it has ended")
		default:
		}
		out, err := inside("/usr/bin/kthwd", "status")
		if err == nil && (!strings.Contains(out, "process 1,") || !strings.HasSuffix(strings.TrimSpace(out), "\nready")) {
			err = errors.New(out)
		}
		return err
	})
	kthwtest.WaitFor(t, "kthwd kubectl get namespaces", time.Minute, func() error { // see prints
		out, err := inside("/usr/bin/kthwd", "kubectl", "get", "namespaces")
		if err == nil && !strings.Contains(out, "kube-system") {
			err = fmt.Errorf("it prints %q", out)
		}
		return err
	})
	e.must(t, "task", "kill", "--signal", "SIGTERM", "c1")
	select {
	case <-gone:
	case <-time.After(2 * time.Minute):
		t.Fatal("the container has not ended within 2 minutes of SIGTERM")
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
	// The last lines may be lost, see prints: the exit code is kthwd's word for a stop in order.
	if before, _, found := strings.Cut(log.String(), "component=etcd msg=stopped"); found && !strings.Contains(before, "component=kube-apiserver msg=stopped") {
		t.Error("etcd stopped before kube-apiserver")
	}
	if n := log.Count("", "read-only file system"); n > 0 {
		t.Errorf("%d lines of the log are about the read-only root", n)
	}
}

// engine is a containerd of the test's own.
type engine struct{ socket, namespace string }

func startEngine(t *testing.T) engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "kthwd-image-") // a short path, for its sockets
	if err != nil {
		t.Fatal(err)
	}
	e := engine{filepath.Join(dir, "c.sock"), fmt.Sprint("kthwd-", os.Getpid())}
	config := fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "%[2]s"
[ttrpc]
  address = "%[2]s.ttrpc"
`, dir, e.socket)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, log := exec.Command("containerd", "--config="+file), &kthwtest.Log{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("something is still mounted: %v", err)
		}
		for _, pattern := range []string{"/sys/fs/cgroup/" + e.namespace, "/sys/fs/cgroup/*/" + e.namespace} {
			left, _ := filepath.Glob(pattern)
			for _, cgroup := range left {
				_ = os.Remove(cgroup) // a hierarchy may have several names
			}
		}
		if t.Failed() {
			t.Logf("log of containerd:\n%s", log.Tail(30))
		}
	})
	kthwtest.WaitFor(t, "containerd", time.Minute, func() error {
		out, err := e.try("version")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return e
}

func (e engine) command(args ...string) *exec.Cmd {
	return exec.Command("ctr", append([]string{"--address", e.socket, "--namespace", e.namespace}, args...)...)
}

func (e engine) try(args ...string) (string, error) {
	out, err := e.command(args...).CombinedOutput()
	return string(out), err
}

func (e engine) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.try(args...)
	if err != nil {
		t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}
