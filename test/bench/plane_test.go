package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

const (
	readyPoll    = 5 * time.Millisecond
	readyTimeout = 2 * time.Second
	startBudget  = 3 * time.Minute
)

// side is one of the two that are compared.
type side int

const (
	separate side = iota
	kthwd
)

func (s side) String() string { return [...]string{"separate", "kthwd"}[s] }

// programs are the paths of the binaries.
type programs struct{ kthwd, etcd, apiserver, controllerManager, scheduler string }

// plane is one control plane: a directory, ports, and the units that run on them.
type plane struct {
	side    side
	address string
	ports   kthwtest.Ports
	layout  pki.Layout
	units   []*unit // in the order of starting
	started time.Time
}

// newPlane prepares a control plane and starts nothing.
func (b *bench) newPlane(t *testing.T, s side, dir string) *plane {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &plane{side: s, address: b.address, ports: kthwtest.FreePorts(t, "0.0.0.0"), layout: pki.Layout{Dir: dir + "/data"}}
	switch {
	case s == kthwd:
		p.units = []*unit{kthwdUnit(b.programs.kthwd, p, dir, b.kthwdArgs)}
	case b.previous != "":
		p.units = []*unit{kthwdUnit(b.previous, p, dir, b.kthwdArgs)}
	default:
		p.units = separateUnits(t, b.programs, p, dir)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			for _, u := range p.units {
				t.Logf("end of %s:\n%s", u.log, u.tail(30))
			}
		}
	})
	return p
}

// kthwdUnit is kthwd with the same addresses and verbosity as the separate
// programs, and its own defaults for the rest.
func kthwdUnit(binary string, p *plane, dir string, further []string) *unit {
	local := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	argv := []string{
		binary, "--role=controller", "--config=", "--data-dir=" + p.layout.Dir, "--advertise-address=" + p.address,
		"--secure-port=" + strconv.Itoa(p.ports.Secure),
		"--etcd-client-port=" + strconv.Itoa(p.ports.EtcdClient),
		"--etcd-peer-port=" + strconv.Itoa(p.ports.EtcdPeer),
		"--controller-manager-port=" + strconv.Itoa(p.ports.ControllerManager),
		"--scheduler-port=" + strconv.Itoa(p.ports.Scheduler),
		"--health-address=" + local(p.ports.Health),
		"--metrics-address=" + local(p.ports.Metrics),
		"--kube-apiserver-arg=profiling=true", // as the separate programs
		"--kube-apiserver-arg=v=2", "--kube-controller-manager-arg=v=2", "--kube-scheduler-arg=v=2",
	}
	return &unit{name: "kthwd", argv: append(argv, further...), log: dir + "/kthwd.log"}
}

// hostAddress is the machine's first address that is not loopback, or loopback
// when there is none.
func hostAddress() string {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}

// start starts all units at the same moment, which it remembers.
func (p *plane) start(t *testing.T) {
	t.Helper()
	p.started = time.Now()
	for _, u := range p.units {
		u.start(t)
	}
}

// stop ends all units, the clients before their servers, and fails the test for
// one that ended before or does not end.
func (p *plane) stop(t *testing.T) {
	t.Helper()
	for i := len(p.units) - 1; i >= 0; i-- {
		u := p.units[i]
		if u.stopping == nil || !u.running() {
			continue
		}
		u.terminate()
		exit, err := u.wait(stopBudget)
		if err != nil {
			t.Error(err)
		}
		// Upstream's kube-controller-manager ends with 1 here: it has lost its lease.
		if p.side == kthwd && exit.code != 0 {
			t.Errorf("kthwd: exit code %d after SIGTERM; want 0", exit.code)
		}
	}
}

// kill ends what still runs, for the end of a test that failed.
func (p *plane) kill() {
	for i := len(p.units) - 1; i >= 0; i-- {
		if u := p.units[i]; u.stopping != nil && u.running() {
			u.terminate()
			_, _ = u.wait(10 * time.Second)
		}
	}
}

func (p *plane) restarts() int {
	n := 0
	for _, u := range p.units {
		n += u.restarted()
	}
	return n
}

// broken is an error when a unit has ended for good.
func (p *plane) broken() error {
	for _, u := range p.units {
		if !u.running() {
			return fmt.Errorf("%s has ended with exit code %d", u.name, u.exit.code)
		}
	}
	return nil
}

// unit is the unit called name.
func (p *plane) unit(t *testing.T, name string) *unit {
	t.Helper()
	for _, u := range p.units {
		if u.name == name {
			return u
		}
	}
	t.Fatalf("no unit %q", name)
	return nil
}

// awaitReady polls /readyz as the administrator, each time over a fresh
// connection, and returns the time since start.
func (p *plane) awaitReady(t *testing.T) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startBudget)
	defer cancel()
	var client *http.Client
	err := errors.New("not asked")
	for tick := time.Tick(readyPoll); ctx.Err() == nil && p.broken() == nil; <-tick {
		if client == nil {
			// kthwd makes the files while it starts.
			if client, err = p.freshClient(); err != nil {
				continue
			}
		}
		if err = ask(ctx, client, "https://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(p.ports.Secure))+"/readyz"); err == nil {
			return time.Since(p.started)
		}
	}
	t.Fatalf("%v: not ready within %v: %v", p.side, startBudget, errors.Join(p.broken(), err))
	return 0
}

func (p *plane) freshClient() (*http.Client, error) {
	pem, err := os.ReadFile(p.layout.CA())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	cert, err := tls.LoadX509KeyPair(p.layout.Cert(pki.NameSuperAdmin), p.layout.Key(pki.NameSuperAdmin))
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: readyTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			RootCAs: pool, Certificates: []tls.Certificate{cert},
			// A resumed session is a fresh connection all the same, and cheaper for both ends.
			ClientSessionCache: tls.NewLRUClientSessionCache(1),
		},
	}}, nil
}

func ask(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// clients are n administrators, each with a connection of its own and no
// client-side limit.
func (p *plane) clients(t *testing.T, n int) []*kubernetes.Clientset {
	t.Helper()
	return p.clientsThatSpeak(t, n, "application/json")
}

// clientsThatSpeak is clients with another form of what they send and receive.
func (p *plane) clientsThatSpeak(t *testing.T, n int, contentType string) []*kubernetes.Clientset {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", p.layout.Kubeconfig(pki.NameSuperAdmin))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = -1, -1
	config.ContentType, config.AcceptContentTypes = contentType, contentType
	clients := make([]*kubernetes.Clientset, n)
	for i := range clients {
		own := rest.CopyConfig(config)
		// Clients with the same configuration share a connection; a dialer makes it differ.
		own.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
		http, err := rest.HTTPClientFor(own)
		if err != nil {
			t.Fatal(err)
		}
		if clients[i], err = kubernetes.NewForConfigAndClient(own, http); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(http.CloseIdleConnections)
	}
	return clients
}
