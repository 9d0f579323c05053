package fault

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// made is a cluster as kthwd pki init makes it: three controllers and a load
// balancer, each on an address of its own.
type made struct {
	dir   string
	lb    string
	ports [4]kthwtest.Ports // the last are the load balancer's
}

func madeAddress(i int) string { return fmt.Sprintf("127.0.71.%d", i+1) }

func makeCluster(t *testing.T) *made {
	t.Helper()
	m := &made{dir: filepath.Join(t.TempDir(), "cluster"), lb: madeAddress(3)}
	var controllers []string
	for i := range m.ports {
		m.ports[i] = kthwtest.FreePorts(t, madeAddress(i))
		m.ports[i].Secure, m.ports[i].EtcdPeer = m.ports[0].Secure, m.ports[0].EtcdPeer // nobody else has these addresses
	}
	for i := range 3 {
		controllers = append(controllers, fmt.Sprintf("c%d=%s", i, madeAddress(i)))
	}
	out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--controllers="+strings.Join(controllers, ","), "--lb="+m.lb,
		fmt.Sprintf("--secure-port=%d", m.ports[0].Secure), fmt.Sprintf("--etcd-peer-port=%d", m.ports[0].EtcdPeer), "--out="+m.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
	return m
}

// start runs controller i, or the load balancer for 3, and does not wait for it.
// What several on one machine must have apart is given beside the file.
func (m *made) start(t *testing.T, i int) *kthwtest.Controller {
	t.Helper()
	o := kthwtest.Options{Address: madeAddress(i), Ports: &m.ports[i], NoWait: true}
	o.Dir = filepath.Join(m.dir, fmt.Sprintf("c%d", i))
	if i == 3 {
		o.Dir = filepath.Join(m.dir, "lb-"+m.lb)
	} else {
		o.Args = []string{
			fmt.Sprintf("--etcd-client-port=%d", m.ports[i].EtcdClient),
			fmt.Sprintf("--controller-manager-port=%d", m.ports[i].ControllerManager),
			fmt.Sprintf("--scheduler-port=%d", m.ports[i].Scheduler),
			fmt.Sprintf("--health-address=%s:%d", madeAddress(i), m.ports[i].Health),
		}
	}
	o.File = filepath.Join(o.Dir, "kthwd.yaml")
	return kthwtest.Start(t, o)
}

// Two commands per machine make a cluster, in whatever order they are given, and
// it works through its balancer while one controller is gone.
func TestMadeCluster(t *testing.T) {
	t.Parallel()
	m := makeCluster(t)
	order := rand.Perm(3)
	t.Logf("order of start: %v", order)

	var all [3]*kthwtest.Controller
	first := m.start(t, order[0])
	all[order[0]] = first
	kthwtest.WaitFor(t, "the first one to say what it waits for", soon, func() error { return waitsForQuorum(first) })
	balancer := m.start(t, 3)
	stays(t, "waits for a quorum", 5*time.Second, func() error { return waitsForQuorum(first) })
	for _, i := range order[1:] {
		all[i] = m.start(t, i)
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	balancer.WaitReady(t)

	client := first.Client(t) // admin.kubeconfig, which names the balancer
	if host, want := first.RESTConfig(t).Host, fmt.Sprintf("https://%s:%d", m.lb, m.ports[0].Secure); host != want {
		t.Errorf("admin.kubeconfig: got the server %s, want %s", host, want)
	}
	ready := func() error {
		body, err := client.CoreV1().RESTClient().Get().AbsPath("/readyz").Timeout(5 * time.Second).DoRaw(t.Context())
		if err == nil && string(body) != "ok" {
			err = fmt.Errorf("got %q", body)
		}
		return err
	}
	kthwtest.WaitFor(t, "/readyz through the balancer", soon, ready)
	kthwtest.WaitFor(t, "a write through the balancer", soon, func() error { return write(t, client, "all-up") })

	lost := rand.IntN(3)
	t.Logf("killed: c%d", lost)
	all[lost].Signal(t, syscall.SIGKILL)
	all[lost].Wait(t, soon)
	kthwtest.WaitFor(t, "/readyz with one controller gone", soon, ready)
	kthwtest.WaitFor(t, "a write with one controller gone", soon, func() error { return write(t, client, "one-down") })
	all[lost] = m.start(t, lost)
	all[lost].WaitReady(t)
}
