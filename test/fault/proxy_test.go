package fault

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	admission "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// recorder is a proxy that refuses every request and remembers what was asked for.
type recorder struct {
	url string

	mu    sync.Mutex
	hosts []string
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{url: "http://" + l.Addr().String()}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.hosts = append(r.hosts, req.Host)
		r.mu.Unlock()
		http.Error(w, "refused by the test", http.StatusForbidden)
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return r
}

// asked returns the hosts that were asked for, each once.
func (r *recorder) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	hosts := slices.Clone(r.hosts)
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// addresses gives this machine addresses that are not loopback, which Go never asks a
// proxy for anyway. It needs root.
func addresses(t *testing.T, net byte, n int) (all []string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to give the machine addresses")
	}
	for i := range n {
		a := fmt.Sprintf("10.254.%d.%d", net, i+1)
		if out, err := exec.Command("ip", "address", "add", a+"/32", "dev", "lo").CombinedOutput(); err != nil {
			t.Skipf("ip address add %s: %v %s", a, err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("ip", "address", "del", a+"/32", "dev", "lo").CombinedOutput(); err != nil {
				t.Errorf("ip address del %s: %v %s", a, err, out)
			}
		})
		all = append(all, a)
	}
	return all
}

// TestProxyOfTheEnvironment runs two of three controllers, and a load balancer that discovers
// them, with a proxy in their environment. They must form a quorum and serve, and only a
// webhook's name may be asked for there: no member, kubelet, API server or backend.
func TestProxyOfTheEnvironment(t *testing.T) {
	kthwtest.Turn(t, 3)
	at := addresses(t, 71, 3)
	proxy := newRecorder(t)
	env := []string{"HTTPS_PROXY=" + proxy.url, "http_proxy=" + proxy.url, "HTTP_PROXY=" + proxy.url, "https_proxy=" + proxy.url, "NO_PROXY=", "no_proxy=",
		"KUBERNETES_SERVICE_HOST=10.254.71.9", "KUBERNETES_SERVICE_PORT=1", "KUBECONFIG=/nowhere", "ETCD_NAME=other", "ETCD_DATA_DIR=/nowhere", "KUBE_FEATURE_WatchListClient=nonsense", "KUBE_CACHE_MUTATION_DETECTOR=true", "REQUEST_METHOD=GET"}
	k := &trio{}
	var peers []string
	for i := range k.dirs {
		k.dirs[i], k.ports[i] = filepath.Join(t.TempDir(), "data"), kthwtest.FreePorts(t, at[i])
		peers = append(peers, fmt.Sprintf("c%d=https://%s:%d", i, at[i], k.ports[i].EtcdPeer))
	}
	// On one machine, a connection to an address comes from that address; etcd compares it with the certificate.
	names := "--subject-alt-name=" + strings.Join(at, ",")
	if out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", "--data-dir="+k.dirs[0], "--bind-address="+at[0], "--advertise-address="+at[0], names,
		fmt.Sprintf("--secure-port=%d", k.ports[0].Secure)).CombinedOutput(); err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
	k.share(t)
	var all []*kthwtest.Controller
	for i := range 2 {
		all = append(all, kthwtest.Start(t, kthwtest.Options{Dir: k.dirs[i], Address: at[i], Ports: &k.ports[i], NoWait: true, Env: env,
			Args: []string{fmt.Sprintf("--name=c%d", i), names, "--etcd-arg=initial-cluster=" + strings.Join(peers, ",")}}))
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	backend := fmt.Sprintf("%s:%d", at[0], k.ports[0].Secure)
	file := filepath.Join(t.TempDir(), "lb.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "role: lb\nlisten: [%s:%d]\nbackend: [%s]\nbackend-ca: %s\ncheck: https\ndiscovery-kubeconfig: %s\nstatus-socket: \"\"\n",
		at[2], k.ports[2].Secure, backend, filepath.Join(k.dirs[0], "ca.pem"), all[0].Kubeconfig("admin")), 0o600); err != nil {
		t.Fatal(err)
	}
	balancer := kthwtest.Start(t, kthwtest.Options{Address: at[2], Ports: &k.ports[2], Env: env, File: file})
	kthwtest.WaitFor(t, "the balancer to discover both", soon, func() error {
		r, err := balancer.Status()
		if err == nil && (r.LB == nil || len(r.LB.Backends) < 2) {
			err = fmt.Errorf("got %+v", r.LB)
		}
		return err
	})
	client := all[0].Client(t)
	for _, c := range all {
		for _, want := range []string{"asked for names outside the cluster only", "variable=HTTPS_PROXY,https_proxy,HTTP_PROXY,http_proxy", "variable=ETCD_NAME", "variable=KUBE_FEATURE_WatchListClient", "variable=KUBE_CACHE_MUTATION_DETECTOR"} {
			if !strings.Contains(c.Log.String(), want) {
				t.Errorf("the log lacks %q", want)
			}
		}
	}
	// The port of a kubelet: nothing listens, which a proxy would have answered otherwise.
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n0"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: at[2]}}}}
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if body, err := client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/n0/proxy/healthz").DoRaw(t.Context()); err == nil || strings.Contains(string(body), "refused by the test") {
		t.Errorf("a kubelet that is not there: got %q, %v", body, err)
	}
	verbsWithoutProxy(t, all[0], env)
	if got := proxy.asked(); len(got) > 0 {
		t.Errorf("asked for at the proxy: got %q, want nothing yet", got)
	}
	askWebhookOutside(t, client, proxy)
	all[0].Signal(t, syscall.SIGTERM)
	all[0].Wait(t, soon)
	if got := proxy.asked(); !slices.Equal(got, []string{"hook.outside.test:443"}) {
		t.Errorf("asked for at the proxy: got %q, want the webhook only", got)
	}
}

// askWebhookOutside makes a webhook whose name is outside the cluster, which the API server must ask
// through the proxy.
func askWebhookOutside(t *testing.T, client kubernetes.Interface, proxy *recorder) {
	t.Helper()
	ignore, none, url := admission.Ignore, admission.SideEffectClassNone, "https://hook.outside.test/"
	_, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admission.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "outside"},
		Webhooks: []admission.ValidatingWebhook{{Name: "hook.outside.test", FailurePolicy: &ignore, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admission.WebhookClientConfig{URL: &url},
			Rules: []admission.RuleWithOperations{{Operations: []admission.OperationType{admission.Create}, Rule: admission.Rule{
				APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	kthwtest.WaitFor(t, "the webhook to be asked through the proxy", soon, func() error {
		n++
		if err := write(t, client, fmt.Sprintf("asked-%d", n)); err != nil {
			return err
		}
		if got := proxy.asked(); !slices.Contains(got, "hook.outside.test:443") {
			return fmt.Errorf("asked for: %q", got)
		}
		return nil
	})
}

// verbsWithoutProxy runs the verbs that ask the cluster as a client of its API does. Each must
// get its answer.
func verbsWithoutProxy(t *testing.T, c *kthwtest.Controller, env []string) {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("abcdef.0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"node", "join", fmt.Sprintf("--server=https://%s:%d", c.Address, c.Ports.Secure), "--ca-hash=sha256:" + strings.Repeat("0", 64), "--token-file=" + token}, "knows no token abcdef"},
		{[]string{"upgrade", "check", "--config=", "--data-dir=" + c.Dir}, "API servers asked: "},
		{[]string{"node", "list", "--config=", "--data-dir=" + c.Dir, "--kubeconfig=" + c.Kubeconfig("admin")}, "KUBELET"},
	} {
		cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), tt.args...)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); !strings.Contains(string(out), tt.want) {
			t.Errorf("kthwd %s: %v, want %q:\n%s", strings.Join(tt.args, " "), err, tt.want, out)
		}
	}
}
