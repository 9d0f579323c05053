package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// A real worker: containerd and kubelet, with Debian's paths on a machine of the
// test's own. What differs from the guide is there for machines in CI: no image
// registry, cgroup v1 or v2 as it comes, no right to lower an OOM score.

const (
	workerName    = "worker-0"
	workerAddress = "10.0.1.73"
	criSocket     = "/run/containerd/containerd.sock"
)

const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "` + criSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + helloImage + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "runc"
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
`

const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "bridge",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.200.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}
`

const kubeletConfig = `kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /var/lib/kubernetes/ca.pem}
authorization:
  mode: Webhook
  webhook: {cacheUnauthorizedTTL: 1s} # 30s by default: the test waits for a refusal to be forgotten
clusterDomain: cluster.local
clusterDNS: [10.32.0.10]
tlsCertFile: /var/lib/kubelet/worker-0.pem
tlsPrivateKeyFile: /var/lib/kubelet/worker-0-key.pem
containerRuntimeEndpoint: unix://` + criSocket + `
resolvConf: ""
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
oomScoreAdj: 0
evictionHard: {memory.available: 1Mi, nodefs.available: 0%, imagefs.available: 0%}
`

// lackingForWorker is what this machine lacks to run a node; "" is nothing.
func lackingForWorker() string {
	for _, need := range []struct{ program, pkg string }{
		{"containerd", "containerd"}, {"ctr", "containerd"}, {"runc", "runc"}, {"/usr/lib/cni/bridge", "containernetworking-plugins"},
	} {
		if _, err := exec.LookPath(need.program); err != nil {
			return fmt.Sprintf("needs %s (Debian: %s)", need.program, need.pkg)
		}
	}
	return ""
}

// removeCgroups removes, when the test ends, what containerd has added to the
// one thing that a machine of its own shares with this one. The kernel keeps a
// cgroup in which something runs.
func removeCgroups(t *testing.T) {
	t.Helper()
	before := containerdCgroups()
	t.Cleanup(func() {
		after := containerdCgroups()
		slices.SortFunc(after, func(a, b string) int { return len(b) - len(a) })
		for _, dir := range after {
			if slices.Contains(before, dir) {
				continue
			}
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
}

// containerdCgroups are those of its namespace k8s.io, with cgroup v1 or v2.
func containerdCgroups() (dirs []string) {
	for _, pattern := range []string{"k8s.io", "k8s.io/*/", "*/k8s.io", "*/k8s.io/*/"} {
		found, _ := filepath.Glob("/sys/fs/cgroup/" + pattern)
		for _, dir := range found {
			dirs = append(dirs, filepath.Clean(dir))
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs) // a hierarchy may have several names
}

// startContainerd runs a container runtime that has the image in archive.
func startContainerd(t *testing.T, archive string) {
	t.Helper()
	writeFile(t, "/etc/containerd/config.toml", containerdConfig)
	writeFile(t, "/etc/cni/net.d/10-bridge.conflist", cniConfig)
	startDaemon(t, "containerd", "--config=/etc/containerd/config.toml")
	t.Cleanup(func() { endContainers(t) }) // before containerd, after kubelet
	kthwtest.WaitFor(t, "containerd", kthwtest.Soon, func() error { return try(t, "ctr", "version") })
	run(t, "ctr", "-n", "k8s.io", "images", "import", archive)
}

// startWorker joins the machine to the cluster that runs on it, and returns its kubelet.
func startWorker(t *testing.T, c *kthwtest.Controller, archive string) *daemon {
	t.Helper()
	startContainerd(t, archive)
	writeFile(t, "/var/lib/kubelet/kubelet-config.yaml", kubeletConfig)
	run(t, kthwtest.Binary(t), "pki", "node", workerName, workerAddress, "--output-dir=/var/lib/kubelet")

	kubelet := startDaemon(t, kthwtest.Tool(t, kubeletPackage), "--config=/var/lib/kubelet/kubelet-config.yaml",
		"--kubeconfig=/var/lib/kubelet/worker-0.kubeconfig", "--hostname-override="+workerName, "--node-ip="+workerAddress, "--v=2")
	waitNodeReady(t, c, kubelet)
	return kubelet
}

func waitNodeReady(t *testing.T, c *kthwtest.Controller, kubelet *daemon) {
	t.Helper()
	kthwtest.WaitFor(t, "node ready", kthwtest.Soon, func() error {
		if kubelet.ended() {
			t.Fatal("the kubelet has ended")
		}
		node, err := c.Client(t).CoreV1().Nodes().Get(t.Context(), workerName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("conditions: %v", node.Status.Conditions)
	})
}

// daemon is a program that runs until the test ends.
type daemon struct {
	cmd  *exec.Cmd
	log  kthwtest.Log
	gone chan struct{}
}

// startDaemon starts a program. Its log is shown if the test failed.
func startDaemon(t *testing.T, program string, args ...string) *daemon {
	t.Helper()
	d := &daemon{cmd: exec.Command(program, args...), gone: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.gone)
	}()
	t.Cleanup(func() { d.end(t) })
	return d
}

func (d *daemon) ended() bool {
	select {
	case <-d.gone:
		return true
	default:
		return false
	}
}

func (d *daemon) end(t *testing.T) {
	name := filepath.Base(d.cmd.Path)
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.gone:
	case <-time.After(2 * time.Minute):
		t.Errorf("%s did not stop within two minutes of SIGTERM", name)
		_ = d.cmd.Process.Kill()
	}
	if t.Failed() {
		t.Logf("log of %s:\n%s", name, d.log.Tail(60))
	}
}

// try is run for a command that may fail.
func try(t *testing.T, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// endContainers ends what the kubelet left when the test ended early: the shims,
// by process id, with what runs below them.
func endContainers(t *testing.T) {
	for _, pid := range shims(t) {
		for _, child := range childrenOf(pid) {
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// shims are containerd's, of this machine: its /proc shows no other process.
func shims(t *testing.T) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		name, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.HasPrefix(filepath.Base(strings.SplitN(string(name), "\x00", 2)[0]), "containerd-shim") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func childrenOf(parent int) (pids []int) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		for field := range strings.FieldsSeq(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
