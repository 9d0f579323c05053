package fault

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
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
	dir    string
	lb     string
	ports  [4]kthwtest.Ports // the last are the load balancer's
	args   []string          // of each controller, beside its file
	lbArgs []string          // of the load balancer, beside its file
	env    []string          // of each controller
	binary string            // of each controller that starts; empty: this kthwd
	homes  []string          // the working directory of each controller; nil for the test's
	owner  *testing.T        // with which all processes end; nil for the test that starts one
}

func madeAddress(i int) string { return fmt.Sprintf("127.0.71.%d", i+1) }

func makeCluster(t *testing.T, args ...string) *made {
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
	args = append([]string{"pki", "init", "--config=", "--controllers=" + strings.Join(controllers, ","), "--lb=" + m.lb,
		fmt.Sprintf("--secure-port=%d", m.ports[0].Secure), fmt.Sprintf("--etcd-peer-port=%d", m.ports[0].EtcdPeer), "--out=" + m.dir}, args...)
	out, err := exec.Command(kthwtest.Binary(t), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
	return m
}

// start runs controller i, or the load balancer for 3, and does not wait for it.
// What several on one machine must have apart is given beside the file.
func (m *made) start(t *testing.T, i int) *kthwtest.Controller {
	t.Helper()
	o := kthwtest.Options{Address: madeAddress(i), Ports: &m.ports[i], NoWait: true, Env: m.env}
	o.Dir = filepath.Join(m.dir, fmt.Sprintf("c%d", i))
	if i == 3 {
		o.Dir = filepath.Join(m.dir, "lb-"+m.lb)
		o.Args = append([]string{"--status-socket="}, m.lbArgs...)
	} else {
		o.Args = []string{
			fmt.Sprintf("--etcd-client-port=%d", m.ports[i].EtcdClient),
			fmt.Sprintf("--controller-manager-port=%d", m.ports[i].ControllerManager),
			fmt.Sprintf("--scheduler-port=%d", m.ports[i].Scheduler),
			fmt.Sprintf("--health-address=%s:%d", madeAddress(i), m.ports[i].Health),
		}
		o.Args = append(o.Args, m.args...)
		o.Binary = m.binary
		if m.homes != nil {
			o.Wrap = []string{"env", "--chdir=" + m.homes[i]}
		}
	}
	o.File = filepath.Join(o.Dir, "kthwd.yaml")
	return kthwtest.Start(cmp.Or(m.owner, t), o)
}

// Two commands per machine make a cluster, in whatever order they are given, and
// it works through its balancer while one controller is gone.
func TestMadeCluster(t *testing.T) {
	kthwtest.Turn(t, 3)
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
		body, err := client.CoreV1().RESTClient().Get().AbsPath("/readyz").Timeout(soon).DoRaw(t.Context())
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
	m.refusesOthersFiles(t, lost)
	all[lost] = m.start(t, lost)
	all[lost].WaitReady(t)
}

// startPatientBalancer starts a load balancer that cuts no connections. A controller that lives looks dead on a machine
// that stands still for seconds, and a request that waits for it must not fail.
func (m *made) startPatientBalancer(t *testing.T) *kthwtest.Controller {
	t.Helper()
	m.lbArgs = []string{"--cut=never"}
	return m.start(t, 3)
}

// startAll starts the three controllers, and returns when all are ready.
func (m *made) startAll(t *testing.T) (all [3]*kthwtest.Controller) {
	t.Helper()
	for i := range all {
		all[i] = m.start(t, i)
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	return all
}

// allUp starts those that have ended, and returns when all are ready.
func (m *made) allUp(t *testing.T, all *[3]*kthwtest.Controller) {
	t.Helper()
	for i, c := range all {
		if c.Exited() {
			all[i] = m.start(t, i)
		}
	}
	for _, c := range all {
		c.WaitReady(t)
	}
}

// TestOfThree is what three controllers share: no part needs the one before it, and each begins with
// all of them up.
func TestOfThree(t *testing.T) {
	kthwtest.LongTurn(t, 3)
	m := makeCluster(t)
	m.owner = t
	all := m.startAll(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *made, *[3]*kthwtest.Controller)
	}{
		{"EtcdVerbs", etcdVerbs}, {"RollingRestartAmongExits", rollingRestartAmongExits}, {"ClusterStatus", clusterStatusOfThree},
		{"MemberRemove", memberRemove}, // the last one: two members are removed for good
	} {
		t.Run(part.name, func(t *testing.T) {
			m.allUp(t, &all)
			part.run(t, m, &all)
		})
	}
}

// refusesOthersFiles starts the controller with keys of its own in place of the
// cluster's. It must end, name the files, and have written nothing with them.
func (m *made) refusesOthersFiles(t *testing.T, i int) {
	t.Helper()
	dir, away := filepath.Join(m.dir, fmt.Sprintf("c%d", i)), t.TempDir()
	names := []string{"encryption-config.yaml", "service-account.pem", "service-account-key.pem"}
	other := filepath.Join(t.TempDir(), "other")
	if out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--advertise-address=127.0.0.1", "--data-dir="+other).CombinedOutput(); err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
	// The token's certificate must fit the cluster's CA, the key only must not.
	for _, name := range names {
		moveFile(t, filepath.Join(dir, name), filepath.Join(away, name))
	}
	moveFile(t, filepath.Join(other, "encryption-config.yaml"), filepath.Join(dir, "encryption-config.yaml"))
	moveFile(t, filepath.Join(other, "service-account-key.pem"), filepath.Join(dir, "service-account-key.pem"))
	if err := os.WriteFile(filepath.Join(dir, "service-account.pem"), publicKey(t, filepath.Join(dir, "service-account-key.pem")), 0o600); err != nil {
		t.Fatal(err)
	}
	c := m.start(t, i)
	if code := c.Wait(t, soon); code != 1 {
		t.Errorf("a controller with other shared files: got exit code %d, want 1", code)
	}
	for _, name := range []string{"encryption-config.yaml", "service-account.pem"} {
		if want := filepath.Join(dir, name) + ": not that of the other controllers"; !strings.Contains(c.Log.String(), want) {
			t.Errorf("a controller with other shared files does not say %q:\n%s", want, c.Log.Tail(20))
		}
	}
	for _, name := range names {
		moveFile(t, filepath.Join(away, name), filepath.Join(dir, name))
	}
}

func moveFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err == nil {
		err = os.Remove(from)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// publicKey is the public half of a key, as service-account.pem may hold it.
func publicKey(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s: no PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		key, err = x509.ParseECPrivateKey(block.Bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// refusesWithoutC2 requires a verb that begins a rotation to be refused while c2 is away, and starts c2
// again.
func (m *made) refusesWithoutC2(t *testing.T, all *[3]*kthwtest.Controller, args ...string) {
	t.Helper()
	all[2].Signal(t, syscall.SIGKILL)
	all[2].Wait(t, soon)
	kthwtest.WaitFor(t, "the refusal", soon, func() error { // for another reason, while etcd elects a leader
		code, out := verb(t, all[0], args...)
		if code == 0 {
			t.Fatalf("a rotation without c2:\n%s", out)
		}
		if !strings.Contains(out, "c2: ") || !strings.Contains(out, "start c2") {
			return errors.New(out)
		}
		return nil
	})
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
}
