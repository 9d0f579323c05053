package members

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/appliance/config"
	"kthwd/appliance/member"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/harness"
	"kthwd/test/lbtest"
)

const soon = 5 * time.Minute // only bounds a hang: a busy machine may need long

// machine is a controller in a network of its own.
type machine struct {
	name, address, dir string
	host               *lbtest.Namespace
	process            *lbtest.Process // nil while none runs
}

type cluster struct {
	machines []*machine
	dir      string // with the CA
}

// requireNetwork skips a test without the means to cut connections, and runs it on a machine
// of its own otherwise. It reports whether the test runs there.
func requireNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv("KTHWD_E2E") == "" {
		t.Skip("KTHWD_E2E is not set: run make test-e2e")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for networks of its own")
	}
	for name, pkg := range map[string]string{"ip": "iproute2", "iptables": "iptables"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s (Debian: %s)", name, pkg)
		}
	}
	return lbtest.OwnMachine(t)
}

func address(i int) string { return fmt.Sprintf("10.43.0.%d", 11+i) }

// newCluster makes controllers as kthwd pki init does, on one bridge, and starts none.
func newCluster(t *testing.T, count int) *cluster {
	t.Helper()
	return newClusterWith(t, count, config.ProfileGuide)
}

// newClusterWith makes controllers with a profile.
func newClusterWith(t *testing.T, count int, profile string) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir()}
	run(t, "ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	run(t, "ip", "link", "set", "br0", "up")
	var list []string
	for i := range count {
		m := c.newMachine(t, i)
		c.machines = append(c.machines, m)
		list = append(list, m.name+"="+m.address)
	}
	shared := config.Default().Controller
	shared.Profile = profile
	plan, err := config.Cluster{Controllers: list, CAKey: []string{"c0", "c1", "c2"}[:count], Dir: c.dir, Shared: shared}.Plan()
	if err == nil {
		_, err = pki.EnsureCluster(plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newMachine makes a machine on the bridge, without a controller.
func (c *cluster) newMachine(t *testing.T, i int) *machine {
	t.Helper()
	m := &machine{name: fmt.Sprintf("c%d", i), address: address(i), host: lbtest.NewNamespace(t)}
	m.dir = filepath.Join(c.dir, m.name)
	port := fmt.Sprintf("v%d", i)
	run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", m.host.Path())
	run(t, "ip", "link", "set", port, "master", "br0", "up")
	m.host.Run(t, "ip", "address", "add", m.address+"/24", "dev", "eth0")
	m.host.Run(t, "ip", "link", "set", "eth0", "up")
	return m
}

func run(t testing.TB, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// start starts the controllers, and does not wait for them.
func start(t testing.TB, machines ...*machine) {
	t.Helper()
	for _, m := range machines {
		m.process = lbtest.Start(t, lbtest.Command{
			Name: m.name, Argv: []string{lbtest.Self(t), filepath.Join(m.dir, config.FileName)}, Env: []string{lbtest.HelperEnv("controller")},
			Namespace: m.host, Stop: syscall.SIGTERM,
		})
	}
}

// client asks the controller on its socket, whatever the network does.
func (m *machine) client() status.Client {
	return status.Client{Socket: pki.Layout{Dir: m.dir}.ControlSocket()}
}

func (m *machine) status(ctx context.Context) (status.Report, error) { return m.client().Status(ctx) }

func (m *machine) list(ctx context.Context) (l member.List, err error) {
	return l, m.client().Do(ctx, http.MethodGet, "/members", nil, &l)
}

// says waits until a report fits.
func (m *machine) says(t *testing.T, what string, fits func(status.Report) bool) {
	t.Helper()
	harness.WaitFor(t, m.name+" to say: "+what, soon, func() error {
		r, err := m.status(t.Context())
		if err == nil && !fits(r) {
			err = fmt.Errorf("got %s", digest(r))
		}
		return err
	})
}

func (m *machine) ready(t *testing.T) {
	t.Helper()
	m.says(t, "ready", func(r status.Report) bool { return r.Ready })
}

func digest(r status.Report) string {
	s := fmt.Sprintf("ready %v; %s", r.Ready, r.Reason)
	if r.Quorum != nil {
		s += fmt.Sprintf("; quorum %+v", *r.Quorum)
	}
	for _, f := range r.Findings {
		s += fmt.Sprintf("; %s %s: %s (%s)", f.Health, f.Kind, f.Text, f.Do)
	}
	return s
}

// finding returns the first finding of a kind, or an empty one.
func finding(r status.Report, kind string) status.Finding {
	for _, f := range r.Findings {
		if f.Kind == kind {
			return f
		}
	}
	return status.Finding{}
}

// shut drops what some machines send to a controller's etcd peer port. The controller reaches
// them all the same. open ends it.
func shut(t testing.TB, m *machine, from ...*machine) { firewall(t, "-A", m, from) }
func open(t testing.TB, m *machine, from ...*machine) { firewall(t, "-D", m, from) }

// part cuts two machines from each other, on all ports and in both directions. meet ends it.
func part(t testing.TB, a, b *machine) { wall(t, "-A", a, b); wall(t, "-A", b, a) }
func meet(t testing.TB, a, b *machine) { wall(t, "-D", a, b); wall(t, "-D", b, a) }

func wall(t testing.TB, do string, m, from *machine) {
	t.Helper()
	m.host.Run(t, "iptables", "-w", do, "INPUT", "-s", from.address, "-j", "DROP")
}

func firewall(t testing.TB, do string, m *machine, from []*machine) {
	t.Helper()
	for _, f := range from {
		m.host.Run(t, "iptables", "-w", do, "INPUT", "-p", "tcp", "-s", f.address,
			"--dport", strconv.Itoa(config.Default().Controller.EtcdPeerPort), "-j", "REJECT", "--reject-with", "tcp-reset")
	}
}
