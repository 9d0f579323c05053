package fault

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
	"kthwd/test/lbtest"
)

// With the profile cis and an address that other machines reach, etcd's client port is on
// 127.0.0.1 only, and the API server uses it through TLS. A controller with one CA moves to a CA
// of etcd's own there, is backed up, verified, and restored under another address.
func TestLoneCIS(t *testing.T) {
	if os.Getenv("KTHWD_E2E") == "" || os.Geteuid() != 0 {
		t.Skip("needs KTHWD_E2E=1 and root, for a network of its own: run make test-e2e")
	}
	if !lbtest.OwnMachine(t) {
		return
	}
	const here, there = "10.99.0.1", "10.99.0.2"
	for _, argv := range [][]string{
		{"link", "set", "lo", "up"}, {"address", "add", here + "/32", "dev", "lo"}, {"address", "add", there + "/32", "dev", "lo"},
	} {
		if out, err := exec.Command("ip", argv...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v\n%s", argv, err, out)
		}
	}
	made, d := filepath.Join(t.TempDir(), "cluster"), config.Default().Controller
	dir := filepath.Join(made, "c0")
	ports := kthwtest.Ports{Secure: d.SecurePort, EtcdClient: d.EtcdClientPort, EtcdPeer: d.EtcdPeerPort, // the machine is the test's own
		ControllerManager: d.ControllerManagerPort, Scheduler: d.SchedulerPort, Health: 80, Metrics: 10300, Join: d.JoinPort}
	o := kthwtest.Options{Dir: dir, File: filepath.Join(dir, "kthwd.yaml"), Address: here, Ports: &ports}
	command(t, "pki", "init", "--config=", "--controllers=c0="+here, "--profile=cis", "--service-cluster-ip-range=10.44.0.0/16", "--with-ca-key=c0", "--out="+made)
	withOneCA(t, dir)
	c := kthwtest.Start(t, o)
	mustWrite(t, c, "before")

	command(t, "pki", "split-etcd-ca", "--config=", "--data-dir="+dir)
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, soon)
	if got := pki.StageOf(pki.Layout{Dir: dir}); got != pki.StageOwn {
		t.Errorf("the directory is at stage %d", got)
	}
	c = kthwtest.Start(t, o)
	mustRead(t, c, "before")
	onLoopbackOnly(t, c)

	archives := filepath.Join(t.TempDir(), "archives")
	out := command(t, "backup", "create", "--config=", "--data-dir="+dir, "--dir="+archives, "--plain-keys")
	file, _, _ := strings.Cut(out, "\n")
	command(t, "backup", "verify", file)
	c.Signal(t, syscall.SIGKILL)
	c.Wait(t, soon)

	restored := filepath.Join(t.TempDir(), "restored")
	command(t, "backup", "restore", file, "--config=", "--data-dir="+restored, "--name=new", "--advertise-address="+there, "--yes")
	data, err := os.ReadFile(filepath.Join(restored, "kthwd.yaml"))
	for _, setting := range []string{"profile: cis", "service-cluster-ip-range: 10.44.0.0/16"} {
		if !strings.Contains(string(data), setting) {
			t.Errorf("the restored configuration lacks %s: %v\n%s", setting, err, data)
		}
	}
	again := kthwtest.Start(t, kthwtest.Options{Dir: restored, File: filepath.Join(restored, "kthwd.yaml"), Address: there, Ports: &ports})
	mustRead(t, again, "before")
	onLoopbackOnly(t, again)
}

// command runs a verb that must succeed, and returns its standard output.
func command(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kthwd %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func mustWrite(t *testing.T, c *kthwtest.Controller, name string) {
	t.Helper()
	if _, err := c.Client(t).CoreV1().ConfigMaps("default").Create(t.Context(), configMap(name, nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, c *kthwtest.Controller, name string) {
	t.Helper()
	if _, err := c.Client(t).CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

// onLoopbackOnly wants etcd to answer at 127.0.0.1 and not at the controller's address.
func onLoopbackOnly(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	address := c.Address
	defer func() { c.Address = address }()
	c.Address = "127.0.0.1"
	if r, err := c.Etcd(t).Get(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || r.Count == 0 {
		t.Errorf("etcd at 127.0.0.1: %v, %v", r, err)
	}
	if r, err := etcdAt(t, c, address); err == nil {
		t.Errorf("etcd answers at %s: %d keys", address, r.Count)
	}
}

// etcdAt asks etcd at another address than the controller's, for a while only.
func etcdAt(t *testing.T, c *kthwtest.Controller, address string) (*clientv3.GetResponse, error) {
	t.Helper()
	c.Address = address
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return c.Etcd(t).Get(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithCountOnly())
}
