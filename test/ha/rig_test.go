package ha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
	"kthwd/test/lbtest"
)

const (
	kcm       = "kube-controller-manager"
	scheduler = "kube-scheduler"

	controllerCount = 3
	soon            = 2 * time.Minute // only bounds a hang: a busy machine may need long
	recovery        = 2 * time.Minute // in which all components have to be ready again
)

// machine is one of the cluster: a controller, or the load balancer.
type machine struct {
	*unit
	name    string
	address string
	host    *lbtest.Namespace // nil on loopback
	dir     string
	ports   kthwtest.Ports
	metrics string
	disk    *kthwtest.Disk // nil when it is not its own
}

// cluster is three controllers and a load balancer, made as docs/operations/several-controllers.md
// says, with a directory and a kthwd.yaml each.
type cluster struct {
	machines []*machine // the controllers, then the load balancer
	network  bool       // each machine has its own; links can be cut
	server   string     // the load balancer's address and port
	admin    string     // kubeconfig
}

func (c *cluster) controllers() []*machine { return c.machines[:controllerCount] }
func (c *cluster) balancer() *machine      { return c.machines[controllerCount] }

// newCluster makes the directories, runs all, and waits until all are ready. The controllers run
// binary, or this kthwd if that is empty.
func newCluster(t *testing.T, network bool, binary string) *cluster {
	t.Helper()
	c := &cluster{network: network}
	for i := range controllerCount + 1 {
		m := &machine{name: fmt.Sprintf("c%d", i), address: fmt.Sprintf("127.0.72.%d", i+1)}
		if i == controllerCount {
			m.name = "lb"
		}
		if network {
			m.address, m.metrics = hostAddress(i), "127.0.0.1:10300"
			d := config.Default().Controller
			m.ports = kthwtest.Ports{Secure: d.SecurePort, EtcdClient: d.EtcdClientPort, EtcdPeer: d.EtcdPeerPort,
				ControllerManager: d.ControllerManagerPort, Scheduler: d.SchedulerPort, Health: 80, Metrics: 10300}
		} else {
			m.ports = kthwtest.FreePorts(t, m.address)
			m.metrics = net.JoinHostPort(m.address, strconv.Itoa(m.ports.Metrics))
			if i > 0 { // the same on each, as pki init wants; nobody else has these addresses
				m.ports.Secure, m.ports.EtcdPeer = c.machines[0].ports.Secure, c.machines[0].ports.EtcdPeer
			}
		}
		c.machines = append(c.machines, m)
	}
	if network {
		connect(t, c.machines)
	}
	c.makeDirectories(t)
	for _, m := range c.machines {
		if m.unit = newUnit(t, m.name, m.host, append([]string{kthwtest.Binary(t)}, m.args(network, m == c.balancer())...)...); binary != "" && m != c.balancer() {
			m.runs(binary)
		}
	}
	c.onAll()
	c.awaitReady(t, recovery)
	return c
}

// makeDirectories runs kthwd pki init once, and copies to each machine its own files.
func (c *cluster) makeDirectories(t *testing.T) {
	t.Helper()
	made, home := filepath.Join(t.TempDir(), "cluster"), t.TempDir()
	var list []string
	for _, m := range c.controllers() {
		list = append(list, m.name+"="+m.address)
	}
	first, lb := c.machines[0], c.balancer()
	run(t, kthwtest.Binary(t), "pki", "init", "--config=", "--controllers="+strings.Join(list, ","), "--lb="+lb.address, "--out="+made,
		fmt.Sprintf("--secure-port=%d", first.ports.Secure), fmt.Sprintf("--etcd-peer-port=%d", first.ports.EtcdPeer))
	for _, m := range c.machines {
		from := filepath.Join(made, m.name)
		if m == lb {
			from = filepath.Join(made, "lb-"+m.address)
		}
		m.dir = filepath.Join(home, m.name)
		if c.network && m != lb {
			m.disk = kthwtest.NewDisk(t, m.dir)
			m.dir = filepath.Join(m.dir, "kubernetes")
		}
		run(t, "cp", "-r", from, m.dir)
	}
	c.admin = filepath.Join(first.dir, "admin.kubeconfig")
	c.server = net.JoinHostPort(lb.address, strconv.Itoa(lb.ports.Secure))
}

// args is the command line: the file, and what several on one machine must have apart.
func (m *machine) args(network, balancer bool) []string {
	args := []string{"--config=" + filepath.Join(m.dir, "kthwd.yaml")}
	if network {
		return args
	}
	args = append(args, "--metrics-address="+m.metrics)
	if balancer {
		return args
	}
	return append(args,
		fmt.Sprintf("--etcd-client-port=%d", m.ports.EtcdClient),
		fmt.Sprintf("--controller-manager-port=%d", m.ports.ControllerManager),
		fmt.Sprintf("--scheduler-port=%d", m.ports.Scheduler),
		fmt.Sprintf("--health-address=%s:%d", m.address, m.ports.Health))
}

func run(t testing.TB, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

func (c *cluster) onAll() {
	for _, m := range c.machines {
		m.on()
	}
}

// status asks a machine how it is, from the machine itself: its link may be down.
func (m *machine) status() (r status.Report, err error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, address string) (net.Conn, error) { return m.host.Dial(ctx, address) },
	}}
	resp, err := client.Get("http://" + m.metrics + "/status")
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	return r, json.NewDecoder(resp.Body).Decode(&r)
}

// ready is nil when all components are ready or standby.
func (m *machine) ready() error {
	r, err := m.status()
	if err == nil && !r.Ready {
		err = errors.New(r.Reason)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", m.name, err)
	}
	return err
}

// allReady is nil when everything is as it should be: all ready, every member
// knows all others, and the load balancer has no doubt about any of them.
func (c *cluster) allReady() error {
	for _, m := range c.machines {
		if err := m.ready(); err != nil {
			return err
		}
	}
	for _, m := range c.controllers() {
		if r, err := m.status(); err != nil || r.Quorum == nil || r.Quorum.Active != controllerCount || r.Quorum.Leader == "" {
			return errors.Join(fmt.Errorf("%s: quorum %+v", m.name, r.Quorum), err)
		}
	}
	r, err := c.balancer().status()
	if err != nil || r.LB == nil {
		return errors.Join(errors.New("the load balancer has no status"), err)
	}
	for _, b := range r.LB.Backends {
		heldDown := strings.HasPrefix(b.Reason, "held down") // ready, but it has failed often of late; here that is no wonder
		if b.State != "ready" && b.State != "slow_start" && !heldDown {
			return fmt.Errorf("load balancer: %s is %s: %s", b.Address, b.State, b.Reason)
		}
	}
	return nil
}

func (c *cluster) awaitReady(t testing.TB, within time.Duration) {
	t.Helper()
	kthwtest.WaitFor(t, "all ready", within, c.allReady)
}

// leader is the controller that leads etcd.
func (c *cluster) leader(t testing.TB) *machine {
	t.Helper()
	var found *machine
	kthwtest.WaitFor(t, "a leader of etcd", soon, func() error {
		for _, m := range c.controllers() {
			r, err := m.status()
			if err != nil || r.Quorum == nil || r.Quorum.Leader == "" {
				continue
			}
			if found = c.byName(r.Quorum.Leader); found != nil {
				return nil
			}
		}
		return errors.New("nobody names one")
	})
	return found
}

// followers are the controllers that do not lead etcd.
func (c *cluster) followers(t testing.TB) []*machine {
	t.Helper()
	leader := c.leader(t)
	var others []*machine
	for _, m := range c.controllers() {
		if m != leader {
			others = append(others, m)
		}
	}
	return others
}

func (c *cluster) byName(name string) *machine {
	for _, m := range c.controllers() {
		if m.name == name {
			return m
		}
	}
	return nil
}

// moveLeader makes a controller etcd's leader.
func (c *cluster) moveLeader(t testing.TB, to *machine) {
	t.Helper()
	kthwtest.WaitFor(t, to.name+" to lead etcd", soon, func() error {
		from := c.leader(t)
		if from == to {
			return nil
		}
		client, err := from.etcd()
		if err != nil {
			return err
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		members, err := client.MemberList(ctx)
		if err != nil {
			return err
		}
		for _, m := range members.Members {
			if m.Name == to.name {
				if _, err := client.MoveLeader(ctx, m.ID); err != nil {
					return err
				}
			}
		}
		return fmt.Errorf("%s led", from.name)
	})
}

// etcd is a client of this machine's member only.
func (m *machine) etcd() (*clientv3.Client, error) {
	config, err := pki.ClientTLS(pki.Layout{Dir: m.dir})
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{fmt.Sprintf("https://%s:%d", m.address, m.ports.EtcdClient)},
		TLS:         config,
		DialTimeout: 5 * time.Second, MaxCallRecvMsgSize: 256 << 20,
	})
}

// client is an administrator's client with a connection of its own. Without an
// address it goes through the load balancer. hangUp closes its connection: the
// next request makes another one.
func (c *cluster) client(t testing.TB, address string, timeout time.Duration) (client kubernetes.Interface, hangUp func()) {
	t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", c.admin)
	if err != nil {
		t.Fatal(err)
	}
	if address != "" {
		cfg.Host = "https://" + address
	}
	cfg.QPS, cfg.Burst, cfg.Timeout = -1, -1, timeout
	cfg.WarningHandler = rest.NoWarnings{}
	d := &dialer{}
	cfg.Dial = d.dial // not shared, see client-go/transport/cache.go
	client, err = kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client, d.hangUp
}

// dialer knows the connections it has made.
type dialer struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
	if err == nil {
		d.mu.Lock()
		d.conns = append(d.conns, conn)
		d.mu.Unlock()
	}
	return conn, err
}

func (d *dialer) hangUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, conn := range d.conns {
		conn.Close()
	}
	d.conns = nil
}
