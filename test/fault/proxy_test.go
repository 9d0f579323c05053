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

// TestProxyOfTheEnvironment runs two of three controllers and a load balancer that discovers
// them with a proxy in their environment. They must form a quorum and serve, and only a
// webhook's name may be asked for there: no member, kubelet, API server or backend.
func TestProxyOfTheEnvironment(t *testing.T) {
	t.Parallel()
	at := addresses(t, 71, 4)
	proxy := newRecorder(t)
	env := []string{"HTTPS_PROXY=" + proxy.url, "http_proxy=" + proxy.url, "HTTP_PROXY=" + proxy.url, "https_proxy=" + proxy.url, "NO_PROXY=", "no_proxy=",
		"KUBERNETES_SERVICE_HOST=10.254.71.9", "KUBERNETES_SERVICE_PORT=1", "KUBECONFIG=/nowhere", "ETCD_NAME=other", "ETCD_DATA_DIR=/nowhere", "KUBE_FEATURE_WatchListClient=nonsense", "REQUEST_METHOD=GET"}
	dir := filepath.Join(t.TempDir(), "cluster")
	ports := [3]kthwtest.Ports{kthwtest.FreePorts(t, at[0]), kthwtest.FreePorts(t, at[1]), kthwtest.FreePorts(t, at[3])}
	for i := range ports {
		ports[i].Secure, ports[i].EtcdPeer = ports[0].Secure, ports[0].EtcdPeer
	}
	if out, err := exec.Command(kthwtest.Binary(t), "pki", "init", "--config=", fmt.Sprintf("--controllers=c0=%s,c1=%s,c2=%s", at[0], at[1], at[2]), "--lb="+at[3],
		fmt.Sprintf("--secure-port=%d", ports[0].Secure), fmt.Sprintf("--etcd-peer-port=%d", ports[0].EtcdPeer), "--out="+dir).CombinedOutput(); err != nil {
		t.Fatalf("kthwd pki init: %v\n%s", err, out)
	}
	var all []*kthwtest.Controller
	for i := range 2 {
		o := kthwtest.Options{Dir: filepath.Join(dir, fmt.Sprintf("c%d", i)), Address: at[i], Ports: &ports[i], NoWait: true, Env: env}
		o.File = filepath.Join(o.Dir, "kthwd.yaml")
		o.Args = []string{
			"--bind-address=" + at[i], fmt.Sprintf("--etcd-client-port=%d", ports[i].EtcdClient), fmt.Sprintf("--health-address=%s:%d", at[i], ports[i].Health),
			fmt.Sprintf("--controller-manager-port=%d", ports[i].ControllerManager), fmt.Sprintf("--scheduler-port=%d", ports[i].Scheduler),
		}
		all = append(all, kthwtest.Start(t, o))
	}
	balancer := filepath.Join(dir, "lb-"+at[3])
	all = append(all, kthwtest.Start(t, kthwtest.Options{Dir: balancer, Address: at[3], Ports: &ports[2], NoWait: true, Env: env,
		File: filepath.Join(balancer, "kthwd.yaml"), Args: []string{"--status-socket="}}))
	for _, c := range all {
		c.WaitReady(t)
	}
	client := all[0].Client(t)
	for _, c := range all[:2] {
		for _, want := range []string{"asked for names outside the cluster only", "variable=HTTPS_PROXY", "variable=ETCD_NAME", "variable=KUBE_FEATURE_WatchListClient"} {
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
	if got := proxy.asked(); len(got) > 0 {
		t.Errorf("asked for at the proxy: got %q, want nothing yet", got)
	}
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
	all[0].Signal(t, syscall.SIGTERM)
	all[0].Wait(t, soon)
	if got := proxy.asked(); !slices.Equal(got, []string{"hook.outside.test:443"}) {
		t.Errorf("asked for at the proxy: got %q, want the webhook only", got)
	}
}
