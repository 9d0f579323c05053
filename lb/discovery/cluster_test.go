package discovery_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// TestCluster: the real kthwd follows a real kube-apiserver through a change, while the
// API is down, through a restart meanwhile, and through itself.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a controller")
	}
	c := kthwtest.Start(t, kthwtest.Options{Address: ownAddress(t)})
	apiServer := net.JoinHostPort(c.Address, strconv.Itoa(c.Ports.Secure))
	ports := kthwtest.FreePorts(t, c.Address)
	itself := net.JoinHostPort(c.Address, strconv.Itoa(ports.Secure))
	throughItself := detour(t, c.Address, itself)
	dir := t.TempDir()
	b := &balancer{t: t, metrics: net.JoinHostPort(c.Address, strconv.Itoa(ports.Metrics)), args: []string{
		"--listen=" + itself, "--backend-ca=" + filepath.Join(c.Dir, "ca.pem"),
		"--discovery-kubeconfig=" + kubeconfig(t, c, dir, "https://"+throughItself),
		"--discovery-cache=" + filepath.Join(dir, "backends.json"),
	}}

	b.start("--backend=" + apiServer)
	b.wait("the backend is discovered, through the load balancer", func(r status.Report) error {
		if d := r.LB.Discovery; d == nil || d.Server != "https://"+throughItself {
			return fmt.Errorf("discovery: %+v", d)
		}
		return listed(r, apiServer)
	})

	const second = "198.51.100.1:6443"
	addSlice(t, c, second)
	b.wait("a second one", func(r status.Report) error { return listed(r, second, apiServer) })
	if s := b.metric("kthwd_lb_discovery_backends"); s != "2" {
		t.Errorf("kthwd_lb_discovery_backends: got %s, want 2", s)
	}

	if err := c.Client(t).DiscoveryV1().EndpointSlices("default").Delete(t.Context(), "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.wait("one again", func(r status.Report) error { return listed(r, apiServer) })
	b.stop()
	b.start()
	b.wait("it runs again", func(r status.Report) error { return listed(r, apiServer) })

	stop := func() {
		t.Helper()
		c.Signal(t, syscall.SIGTERM)
		c.Wait(t, time.Minute)
	}
	start := func() {
		t.Helper()
		c = kthwtest.Start(t, kthwtest.Options{Dir: c.Dir, Ports: &c.Ports, Address: c.Address})
	}
	away := func(r status.Report) error {
		if r.LB.Discovery == nil || r.LB.Discovery.Error == "" {
			return errors.New("discovery does not see that the API is away")
		}
		if !r.Ready {
			return errors.New("not ready: " + r.Reason)
		}
		return listed(r, apiServer)
	}
	stop()
	b.wait("the list stays", away)
	b.stop()
	b.start() // with the API away, and without a static backend
	b.wait("the cache is used", away)
	start()
	b.wait("the API is back", func(r status.Report) error {
		if d := r.LB.Discovery; d == nil || d.Server == "" {
			return fmt.Errorf("discovery: %+v", d)
		}
		return listed(r, apiServer)
	})
	b.stop()

	// Without any backend it waits; and it is no way to the API for itself.
	stop()
	b.args = append(b.args[:2:2], "--discovery-kubeconfig="+kubeconfigWith(t, c, dir, "https://"+apiServer, b.token(t)))
	b.start()
	b.wait("it waits", func(r status.Report) error {
		if r.Ready || r.Reason != "lb: waiting for the first list of backends" {
			return fmt.Errorf("ready %v: %s", r.Ready, r.Reason)
		}
		return nil
	})
	start()
	b.wait("it has waited enough", func(r status.Report) error {
		if !r.Ready {
			return errors.New(r.Reason)
		}
		return listed(r, apiServer)
	})
	b.stop()
}

// ownAddress returns the address with which this machine reaches others: API servers list no
// loopback ones, and further addresses may be other tests', for a while.
func ownAddress(t *testing.T) string {
	conn, err := net.Dial("udp4", "192.0.2.1:9") // which sends nothing
	if err != nil {
		t.Skipf("needs an IPv4 address that is not loopback: %v", err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// detour returns an address whose connections are forwarded to another one, once a server
// listens there.
func detour(t *testing.T, host, to string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	forward := func(in net.Conn) {
		defer in.Close()
		var out net.Conn
		for deadline := time.Now().Add(4 * time.Second); out == nil; {
			var err error
			if out, err = net.Dial("tcp", to); err != nil && time.Now().After(deadline) {
				return
			}
			runtime.Gosched()
		}
		defer out.Close()
		go func() { _, _ = io.Copy(in, out); in.Close() }()
		_, _ = io.Copy(out, in)
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go forward(in)
		}
	}()
	return l.Addr().String()
}

// listed returns an error unless these are the discovered backends. A draining one may be
// listed as well.
func listed(r status.Report, want ...string) error {
	var got []string
	for _, b := range r.LB.Backends {
		if b.State != "draining" && b.Source == "discovered" {
			got = append(got, b.Address)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("discovered: got %v, want %v", got, want)
	}
	return nil
}

// kubeconfig returns the kubeconfig of a user with the least sufficient rights.
func kubeconfig(t *testing.T, c *kthwtest.Controller, dir, server string) string {
	client, ctx := c.Client(t), t.Context()
	meta := metav1.ObjectMeta{Name: "kthwd-lb", Namespace: "default"}
	create := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create(client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{}))
	create(client.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"}},
	}}, metav1.CreateOptions{}))
	create(client.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: meta.Name, Namespace: "default"}},
	}, metav1.CreateOptions{}))
	token, err := client.CoreV1().ServiceAccounts("default").CreateToken(ctx, meta.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfigWith(t, c, dir, server, token.Status.Token)
}

func kubeconfigWith(t *testing.T, c *kthwtest.Controller, dir, server, token string) string {
	config := api.NewConfig()
	config.Clusters["kubernetes"] = &api.Cluster{Server: server, CertificateAuthority: filepath.Join(c.Dir, "ca.pem")}
	config.AuthInfos["kthwd-lb"] = &api.AuthInfo{Token: token}
	config.Contexts["kthwd-lb"] = &api.Context{Cluster: "kubernetes", AuthInfo: "kthwd-lb"}
	config.CurrentContext = "kthwd-lb"
	path := filepath.Join(dir, "lb.kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// addSlice lists a backend that does not exist in a separate slice, which no API server
// changes.
func addSlice(t *testing.T, c *kthwtest.Controller, backend string) {
	host, text, _ := net.SplitHostPort(backend)
	n, _ := strconv.Atoi(text)
	port, name, ready := int32(n), "https", true
	_, err := c.Client(t).DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "more", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{host}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// balancer is a kthwd --role=lb.
type balancer struct {
	t       *testing.T
	metrics string
	args    []string
	cmd     *exec.Cmd
	log     *kthwtest.Log
	ended   chan error
}

func (b *balancer) start(more ...string) {
	b.t.Helper()
	args := append([]string{"--role=lb", "--status-socket=", "--metrics-address=" + b.metrics, "--metrics-insecure", "--drain-timeout=1h"}, b.args...)
	b.cmd, b.log, b.ended = exec.Command(kthwtest.Binary(b.t), append(args, more...)...), &kthwtest.Log{}, make(chan error, 1)
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	cmd, log, ended := b.cmd, b.log, b.ended
	go func() { ended <- cmd.Wait(); close(ended) }()
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for range ended {
		}
		if b.t.Failed() {
			b.t.Logf("log of the load balancer:\n%s", log.Tail(100))
		}
	})
}

// stop ends it, and holds that its own connection through itself does not delay the end
// of the drain.
func (b *balancer) stop() {
	b.t.Helper()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-b.ended:
		if err != nil {
			b.t.Errorf("the load balancer: %v", err)
		}
	case <-time.After(2 * time.Minute): // far less than --drain-timeout
		b.t.Fatal("the load balancer does not stop")
	}
}

func (b *balancer) wait(what string, cond func(status.Report) error) {
	b.t.Helper()
	kthwtest.WaitFor(b.t, what, kthwtest.Soon, func() error {
		select {
		case err := <-b.ended:
			b.t.Fatalf("the load balancer has ended: %v", err)
		default:
		}
		resp, err := http.Get("http://" + b.metrics + "/status")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var r status.Report
		if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
			return err
		}
		return cond(r)
	})
}

func (b *balancer) metric(name string) string {
	b.t.Helper()
	resp, err := http.Get("http://" + b.metrics + "/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "none"
}

// token returns the token in its kubeconfig.
func (b *balancer) token(t *testing.T) string {
	path, _ := strings.CutPrefix(b.args[2], "--discovery-kubeconfig=")
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	return config.AuthInfos["kthwd-lb"].Token
}
