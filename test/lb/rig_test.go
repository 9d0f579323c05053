package lb

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/dnstest"
	"kthwd/test/harness"
	"kthwd/test/lbtest"
)

const (
	listenAddress  = "10.42.0.1:6443"
	metricsAddress = "127.0.0.1:9464"
	clientAddress  = "10.42.0.21"
	lostAddress    = "10.42.0.22"
	lateAddress    = "10.42.0.9:6443" // no machine has it at first
	backendsName   = "api.test"       // stands for all backends

	backendCount = 3
)

func backendIP(i int) string      { return fmt.Sprintf("10.42.0.%d", 11+i) }
func backendAddress(i int) string { return backendIP(i) + ":6443" }
func backendName(i int) string    { return fmt.Sprintf("b%d", i) }

// rig is one balancer with its backends and clients, each in a separate network namespace,
// joined by a bridge in the balancer's namespace.
type rig struct {
	*suite
	row      *row
	side     *lbtest.Balancer
	setup    lbtest.Setup
	balancer *lbtest.Process
	backends []*lbtest.Process

	lb      *lbtest.Namespace
	hosts   []*lbtest.Namespace // one per backend
	clients *lbtest.Namespace
	lost    *lbtest.Namespace // for clients that vanish
}

// newRig starts the backends and the balancer, and waits until it balances.
func (s *suite) newRig(t *testing.T, row *row, side *lbtest.Balancer) *rig {
	t.Helper()
	machine() // sees stalls from here on
	r := &rig{suite: s, row: row, side: side}
	r.network(t)
	for i := range r.hosts {
		r.backends = append(r.backends, nil)
		r.startBackend(t, i)
	}
	r.setup = lbtest.Setup{
		Dir: t.TempDir(), Namespace: r.lb, Listen: cmp.Or(row.listen, listenAddress), HTTPS: true, CA: s.certificate,
		Args: []string{"--metrics-address=" + metricsAddress},
	}
	for i := range r.hosts {
		r.setup.Backends = append(r.setup.Backends, backendAddress(i))
	}
	if row.named {
		var dns *dnstest.Server
		r.lb.Do(func() { dns = dnstest.Start(t) })
		var all []string
		for i := range r.hosts {
			all = append(all, backendIP(i))
		}
		dns.Set(backendsName, all...)
		r.setup.Backends, r.setup.Resolver, r.setup.Addresses = []string{backendsName + ":6443"}, dns.Address(), backendCount
	}
	if row.prepare != nil {
		row.prepare(&r.setup)
	}
	r.balancer = side.Start(t, r.setup)
	if row.listen == "" {
		r.awaitReady(t)
	}
	return r
}

// network creates the namespaces and the bridge. Neighbours are fixed, so that a host
// whose link is down is silent, like one behind a router, instead of being reported
// unreachable after three seconds.
func (r *rig) network(t *testing.T) {
	t.Helper()
	r.lb = lbtest.NewNamespace(t)
	r.lb.Run(t, "ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	r.lb.Run(t, "ip", "address", "add", "10.42.0.1/24", "dev", "br0")
	r.lb.Run(t, "ip", "link", "set", "br0", "up")
	for i := range backendCount {
		r.hosts = append(r.hosts, r.host(t, backendIP(i), i))
	}
	r.clients = r.host(t, clientAddress, 10)
	r.lost = r.host(t, lostAddress, 11)
}

func (r *rig) host(t *testing.T, ip string, number int) *lbtest.Namespace {
	t.Helper()
	n := lbtest.NewNamespace(t)
	port, mac := fmt.Sprintf("v%d", number), fmt.Sprintf("02:00:00:00:00:%02x", number)
	r.lb.Run(t, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", n.Path())
	r.lb.Run(t, "ip", "link", "set", port, "master", "br0", "up")
	r.lb.Run(t, "ip", "neighbour", "replace", ip, "lladdr", mac, "dev", "br0", "nud", "permanent")
	n.Run(t, "ip", "address", "add", ip+"/24", "dev", "eth0")
	n.Run(t, "ip", "link", "set", "eth0", "up")
	return n
}

// nameBackends gives the backends' addresses one name, for all programs of this test. It
// is alone in its mount namespace.
func nameBackends(t *testing.T) {
	t.Helper()
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	for i := range backendCount {
		hosts = fmt.Appendf(hosts, "%s %s\n", backendIP(i), backendsName)
	}
	path := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(path, hosts, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("mount over /etc/hosts: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/etc/hosts", unix.MNT_DETACH); err != nil {
			t.Errorf("unmount /etc/hosts: %v", err)
		}
	})
}

func (r *rig) startBackend(t *testing.T, i int) {
	t.Helper()
	p := lbtest.StartHelper(t, r.hosts[i], "backend", backendName(i), backendAddress(i), r.certificate, r.key)
	if line := p.Line(t); line != "ready" {
		t.Fatalf("backend said %q", line)
	}
	r.backends[i] = p
}

// kill is kill -9; the kernel closes the backend's connections.
func (r *rig) kill(t *testing.T, i int) {
	t.Helper()
	r.backends[i].Signal(t, syscall.SIGKILL)
	<-r.backends[i].Exited()
}

// cut makes a host silent, from its own side.
func cut(t *testing.T, host *lbtest.Namespace) {
	t.Helper()
	host.Run(t, "ip", "link", "set", "eth0", "down")
}

// awaitReady waits until every backend in use has answered through the balancer.
func (r *rig) awaitReady(t *testing.T) {
	t.Helper()
	missing := map[string]bool{}
	for _, address := range r.setup.Backends {
		for i := range r.hosts {
			if address == backendAddress(i) || address == backendsName+":6443" {
				missing[backendName(i)] = true
			}
		}
	}
	harness.WaitFor(t, r.side.Name+" balances to all backends", 2*time.Minute, func() error {
		if !r.balancer.Running() {
			t.Fatalf("%s has ended:\n%s", r.side.Name, r.balancer.Log.Tail(40))
		}
		name, err := r.request(t.Context(), r.clients, time.Second)
		if err != nil {
			return err
		}
		delete(missing, name)
		if len(missing) > 0 {
			return fmt.Errorf("no answer of %v yet", missing)
		}
		return nil
	})
}

// signalAll sends a signal to all processes of the balancer.
func (r *rig) signalAll(s syscall.Signal) {
	for _, pid := range r.lb.Processes() {
		_ = unix.Kill(pid, s)
	}
}

// metric adds up the series of kthwd's metrics whose line begins with prefix and contains
// all parts; the others have no such metrics.
func (r *rig) metric(t *testing.T, prefix string, parts ...string) (sum float64, known bool) {
	t.Helper()
	if r.side != lbtest.Kthwd {
		return 0, false
	}
	return metricAt(t, r.lb, metricsAddress, prefix, parts...)
}

// metricAt is metric of the kthwd with a metrics address in a namespace.
func metricAt(t *testing.T, n *lbtest.Namespace, at, prefix string, parts ...string) (sum float64, known bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, address string) (net.Conn, error) { return n.Dial(ctx, address) },
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Logf("metrics: %v", err)
		return 0, false
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Logf("metrics: %v", err)
		return 0, false
	}
	return sumSeries(string(body), prefix, parts)
}

func sumSeries(text, prefix string, parts []string) (sum float64, known bool) {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		matches := true
		for _, part := range parts {
			matches = matches && strings.Contains(line, part)
		}
		var value float64
		if _, err := fmt.Sscanf(line[strings.LastIndexByte(line, ' ')+1:], "%g", &value); err == nil && matches {
			sum, known = sum+value, true
		}
	}
	return sum, known
}

// makeCertificate returns a certificate for all backends, which is its own CA.
func makeCertificate(t *testing.T, dir string) (certificate, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.ParseIP("10.42.0.1")}, DNSNames: []string{backendsName},
	}
	for i := range backendCount {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(backendIP(i)))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, block := range map[string]*pem.Block{
		certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: privateDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return certificate, key, pool
}
