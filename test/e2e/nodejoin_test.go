package e2e

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/durable"
	"kthwd/appliance/nodejoin"
	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

// joinerAddress is a second address of the machine: that of a controller is no worker's.
const joinerAddress = "10.0.1.74"

// workerCA is the worker's ca.pem. The machine has the controller's, too.
const workerCA = "/var/lib/kubelet/ca.pem"

// forMachine is what the kubelet needs on a machine in CI, beside the file that the join has
// written.
const forMachine = `kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
cgroupDriver: cgroupfs
resolvConf: ""
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
oomScoreAdj: 0
evictionHard: {memory.available: 1Mi, nodefs.available: 0%, imagefs.available: 0%}
`

// TestRealNodeJoins joins a real kubelet with a token. It gets its certificates itself: logs
// and exec work over a serving certificate that the API server verifies. Removed, it is nobody.
func TestRealNodeJoins(t *testing.T) {
	if !onWorkerMachine(t) {
		return
	}
	c, kubelet := joinWorker(t, byCommand)
	pod := deployHello(t, c)

	t.Run("serving certificate", func(t *testing.T) {
		pool := certPool(t, pki.Layout{Dir: c.Dir}.CA())
		kthwtest.WaitFor(t, "a certificate of the cluster's CA", kthwtest.Soon, func() error {
			conn, err := tls.Dial("tcp", net.JoinHostPort(joinerAddress, "10250"), &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
			if err != nil {
				return err
			}
			return conn.Close()
		})
	})
	t.Run("logs and exec", func(t *testing.T) { wantAllowed(t, c, kubelet, pod) })
	t.Run("another CA", func(t *testing.T) { replaceCA(t, c, kubelet, pod) })
	t.Run("deleted", func(t *testing.T) { wantDeleted(t, c) })
	t.Run("removed", func(t *testing.T) {
		run(t, kthwtest.Binary(t), "node", "remove", workerName, "--drain")
		pair := filepath.Join("/var/lib/kubelet/pki", "kubelet-client-current.pem")
		kthwtest.WaitFor(t, "refusal of the kubelet's certificate", kthwtest.Soon, func() error {
			out, err := c.TryKubectl(t, "--kubeconfig=/dev/null", "--server=https://"+workerAddress+":6443", "--certificate-authority="+pki.Layout{Dir: c.Dir}.CA(),
				"--client-certificate="+pair, "--client-key="+pair, "get", "--raw", "/api/v1/nodes/"+workerName)
			if err == nil {
				return fmt.Errorf("it is accepted")
			}
			return lacks(out, "nauthorized")
		})
		if list, err := c.Client(t).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
			t.Errorf("nodes: got %v, %v; want none", list.Items, err)
		}
	})
}

// joinWorker runs a controller and joins a real kubelet to it, whose files join writes. join returns the
// path of the kubelet that the unit has to name. args are the controller's.
func joinWorker(t *testing.T, join func(*testing.T) string, args ...string) (*kthwtest.Controller, *daemon) {
	t.Helper()
	run(t, "ip", "address", "add", joinerAddress+"/24", "dev", "eth0")
	c := kthwtest.Start(t, kthwtest.Options{Plain: true, Args: append(args, "--advertise-address="+workerAddress)})
	startContainerd(t, os.Getenv(archiveEnv))
	path := join(t)
	writeFile(t, "/etc/kubelet.d/10-machine.conf", forMachine)
	command := execStart(readFile(t, "/etc/systemd/system/kubelet.service"))
	if command[0] != path {
		t.Errorf("the unit starts %s, want %s", command[0], path)
	}
	kubelet := startDaemon(t, kthwtest.Tool(t, kubeletPackage), append(command[1:], "--config-dir=/etc/kubelet.d", "--v=2")...)
	waitNodeReady(t, c, kubelet)
	return c, kubelet
}

// newToken makes a token for the worker.
func newToken(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, kthwtest.Binary(t), append([]string{"node", "token", "create", "--name=" + workerName, "--cidr=" + joinerAddress + "/32"}, args...)...)
}

// byCommand joins with kthwd.
func byCommand(t *testing.T) string {
	t.Helper()
	kubelet := kthwtest.Tool(t, kubeletPackage)
	writeFile(t, "/run/join.json", newToken(t, "-o=json"))
	t.Cleanup(func() { os.Remove("/run/join.json") })
	run(t, kthwtest.Binary(t), "node", "join", "--from=/run/join.json", "--node-ip="+joinerAddress, "--cgroup-driver=cgroupfs", "--ca-file="+workerCA,
		"--kubelet="+kubelet)
	return kubelet
}

// byScript joins with the shell script, without kthwd. The machine has the CA's file already.
func byScript(t *testing.T) string {
	t.Helper()
	writeFile(t, "/run/join.sh", newToken(t, "--script"))
	t.Cleanup(func() { os.Remove("/run/join.sh") })
	wantAll(t, run(t, "env", "NODE_IP="+joinerAddress, "sh", "/run/join.sh"), "made  /var/lib/kubelet/bootstrap.kubeconfig", "made  /etc/systemd/system/kubelet.service")
	return nodejoin.DefaultFiles().Kubelet
}

// replaceCA replaces the cluster's CA under a kubelet that runs: the new one does not sign before the
// kubelet trusts it.
func replaceCA(t *testing.T, c *kthwtest.Controller, kubelet *daemon, pod string) {
	t.Helper()
	run(t, kthwtest.Binary(t), "pki", "ca", "rotate", "--without-backup")
	if out := run(t, kthwtest.Binary(t), "pki", "ca", "status"); !strings.Contains(out, "0 of 1 trust the new CA") {
		t.Errorf("before the kubelet has ca.pem:\n%s", out)
	}
	if out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), "pki", "ca", "sign").CombinedOutput(); err == nil || !strings.Contains(string(out), workerName+" does not trust the new CA") {
		t.Errorf("kthwd pki ca sign: %v\n%s", err, out)
	}
	if err := durable.Write(workerCA, []byte(readFile(t, pki.Layout{Dir: c.Dir}.CA())), 0o644); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "the kubelet to trust the new CA", kthwtest.Soon, func() error {
		return lacks(run(t, kthwtest.Binary(t), "pki", "ca", "status"), "1 of 1 trust the new CA")
	})
	run(t, kthwtest.Binary(t), "pki", "ca", "sign", "--force")
	wantAllowed(t, c, kubelet, pod)
	kthwtest.WaitFor(t, "the node to be named", kthwtest.Soon, func() error {
		return lacks(run(t, kthwtest.Binary(t), "pki", "ca", "status"), "system:node:"+workerName+" from")
	})
}

// execStart is the command line of a unit.
func execStart(unit string) []string {
	_, command, _ := strings.Cut(strings.ReplaceAll(unit, "\\\n", " "), "\nExecStart=")
	command, _, _ = strings.Cut(command, "\n")
	return strings.Fields(command)
}
