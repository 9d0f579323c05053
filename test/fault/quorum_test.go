package fault

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// shared are the files that the controllers of one cluster have in common.
var shared = []string{
	"ca.pem", "ca-key.pem", "service-account.pem", "service-account-key.pem",
	"front-proxy-ca.pem", "front-proxy-ca-key.pem", "etcd-ca.pem", "etcd-ca-key.pem", "encryption-config.yaml",
}

// trio is three controllers on one machine.
type trio struct {
	dirs  [3]string
	ports [3]kthwtest.Ports
	peers string
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	k := &trio{}
	var peers []string
	for i := range k.dirs {
		k.dirs[i] = filepath.Join(t.TempDir(), "data")
		k.ports[i] = kthwtest.FreePorts(t, "127.0.0.1")
		peers = append(peers, fmt.Sprintf("c%d=https://%s", i, net.JoinHostPort("127.0.0.1", strconv.Itoa(k.ports[i].EtcdPeer))))
	}
	k.peers = strings.Join(peers, ",")
	return k
}

// start runs controller i and does not wait for it.
func (k *trio) start(t *testing.T, i int) *kthwtest.Controller {
	t.Helper()
	return kthwtest.Start(t, kthwtest.Options{
		Dir: k.dirs[i], Ports: &k.ports[i], NoWait: true,
		Args: []string{fmt.Sprintf("--name=c%d", i), "--etcd-arg=initial-cluster=" + k.peers},
	})
}

// share gives the controllers 1 and 2 the cluster's files that controller 0 made.
func (k *trio) share(t *testing.T) {
	t.Helper()
	for _, dir := range k.dirs[1:] {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range shared {
			data, err := os.ReadFile(filepath.Join(k.dirs[0], name))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

const noQuorum = "waiting for etcd quorum (1 of 3)"

// waitsForQuorum is nil when kthwd runs, and says everywhere that it waits.
func waitsForQuorum(c *kthwtest.Controller) error {
	if c.Exited() {
		return fmt.Errorf("it has ended:\n%s", c.Log.Tail(20))
	}
	r, err := c.Status()
	if err != nil {
		return err
	}
	if r.Ready || r.Reason != "etcd: "+noQuorum || r.Quorum == nil || r.Quorum.Note != noQuorum {
		return fmt.Errorf("status: ready %v, reason %q, quorum %+v; want %q", r.Ready, r.Reason, r.Quorum, noQuorum)
	}
	code, body, err := bridge(c, "/healthz")
	if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, noQuorum) {
		return errors.Join(fmt.Errorf("/healthz: got %d %q, want 503 and %q", code, body, noQuorum), err)
	}
	code, body, err = ask(http.DefaultTransport, fmt.Sprintf("http://%s:%d/readyz", c.Address, c.Ports.Metrics))
	if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, noQuorum) {
		return errors.Join(fmt.Errorf("/readyz of the metrics address: got %d %q, want 503 and %q", code, body, noQuorum), err)
	}
	return nil
}

// A missing quorum is a state, at the start and later: the process waits, says
// so, and goes on when the peers are there.
func TestQuorum(t *testing.T) {
	kthwtest.Turn(t, 3)
	k := newTrio(t)

	c0 := k.start(t, 0)
	waits := func() error { return waitsForQuorum(c0) }
	kthwtest.WaitFor(t, "the lone member to say what it waits for", soon, waits)
	stays(t, "waits for a quorum", 11*time.Second, waits)
	asked := time.Now()
	stop(t, c0, syscall.SIGTERM, 0)
	t.Logf("SIGTERM while waiting: exit code 0 after %v", time.Since(asked).Round(10*time.Millisecond))

	c0 = k.start(t, 0)
	kthwtest.WaitFor(t, "it to wait again", soon, waits)
	k.share(t)
	c1, c2 := k.start(t, 1), k.start(t, 2)
	for _, c := range []*kthwtest.Controller{c0, c1, c2} {
		c.WaitReady(t)
	}

	c2.Signal(t, syscall.SIGKILL)
	c2.Wait(t, soon)
	kthwtest.WaitFor(t, "a write with one member down", soon, func() error { return write(t, c0.Client(t), "one-down") })
	kthwtest.WaitFor(t, "a write through the other one", soon, func() error { return write(t, c1.Client(t), "one-down-too") })

	c1.Signal(t, syscall.SIGKILL)
	c1.Wait(t, soon)
	kthwtest.WaitFor(t, "the survivor to say what it waits for", soon, waits)
	kthwtest.WaitFor(t, "the survivor's /readyz to fail", soon, func() error {
		if _, err := c0.Client(t).CoreV1().RESTClient().Get().AbsPath("/readyz").Timeout(soon).DoRaw(t.Context()); err == nil {
			return fmt.Errorf("it says ok")
		}
		return nil
	})
	// Longer than a renew deadline: both components lose their leases meanwhile.
	before, begun := begunWatches(t, c0), time.Now()
	stays(t, "waits for a quorum", 12*time.Second, waits)
	// Upstream's caches ask etcd again as soon as they are refused: hundreds of times each.
	// A watch that waits for a leader is refused once every three seconds.
	n, took := begunWatches(t, c0)-before, time.Since(begun)
	t.Logf("without a quorum %d watches of etcd were begun in %v, %d before", n, took.Round(time.Second), before)
	if turns := int(took/(3*time.Second)) + 1; n > 3*turns*before {
		t.Errorf("without a quorum %d watches of etcd were begun in %v, and %d before: more than three times what %d turns of all of them make", n, took, before, turns)
	}

	c1 = k.start(t, 1)
	c0.WaitReady(t)
	c1.WaitReady(t)
	kthwtest.WaitFor(t, "a write with the quorum back", soon, func() error { return write(t, c0.Client(t), "back") })
	for _, name := range []string{"one-down", "one-down-too", "back"} {
		kthwtest.WaitFor(t, "the acknowledged write "+name, soon, func() error {
			err := has(t, c1.Client(t), name)
			if apierrors.IsNotFound(err) { // a read that the quorum has confirmed
				t.Fatalf("an acknowledged write is lost: %v", err)
			}
			return err
		})
	}
	if r, err := c0.Status(); err != nil || r.PID != c0.Cmd.Process.Pid {
		t.Errorf("the survivor: got process %d (%v), want %d as before", r.PID, err, c0.Cmd.Process.Pid)
	}
}

var watchesBegun = regexp.MustCompile(`(?m)^grpc_server_started_total\{grpc_method="Watch",[^}]*\} (\S+)$`)

// begunWatches is how many watches etcd has been asked for so far.
func begunWatches(t *testing.T, c *kthwtest.Controller) int {
	t.Helper()
	_, body, err := ask(http.DefaultTransport, fmt.Sprintf("http://%s:%d/metrics/etcd", c.Address, c.Ports.Metrics))
	found := watchesBegun.FindStringSubmatch(body)
	if err != nil || found == nil {
		t.Fatalf("etcd's metrics: %v, %.300s", err, body)
	}
	n, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

func write(t *testing.T, client kubernetes.Interface, name string) error {
	_, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), configMap(name, nil), metav1.CreateOptions{})
	return err
}

func has(t *testing.T, client kubernetes.Interface, name string) error {
	_, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{})
	return err
}
