package fault

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// endlessLogs serves a container's log that goes on until the reader leaves, as a kubelet does, and
// returns its port.
func endlessLogs(t *testing.T) int32 {
	t.Helper()
	kubelet := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for ticks := time.Tick(100 * time.Millisecond); ; {
			fmt.Fprintln(w, "one line of", r.URL.Path)
			if http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-ticks:
			}
		}
	}))
	kubelet.StartTLS()
	t.Cleanup(func() {
		kubelet.CloseClientConnections()
		kubelet.Close()
	})
	return int32(kubelet.Listener.Addr().(*net.TCPAddr).Port)
}

// runPod makes a pod that runs on a node at 127.0.0.1 whose kubelet listens on port.
func runPod(t *testing.T, client kubernetes.Interface, node, pod string, port int32) {
	t.Helper()
	n, err := client.CoreV1().Nodes().Create(t.Context(), &core.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, metav1.CreateOptions{})
	if err == nil {
		n.Status = core.NodeStatus{
			Addresses:       []core.NodeAddress{{Type: core.NodeInternalIP, Address: "127.0.0.1"}},
			DaemonEndpoints: core.NodeDaemonEndpoints{KubeletEndpoint: core.DaemonEndpoint{Port: port}},
		}
		_, err = client.CoreV1().Nodes().UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "the pod, for which its namespace needs a service account", soon, func() error {
		_, err := client.CoreV1().Pods("default").Create(t.Context(), &core.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod},
			Spec: core.PodSpec{NodeName: node, Containers: []core.Container{{Name: "main", Image: "none"}}}}, metav1.CreateOptions{})
		return err
	})
}

// TestStopBesideStreams stops kthwd while kubectl follows a log and a watch, which nothing but the
// stop ends: it stays within every budget, and each kubectl ends.
func TestStopBesideStreams(t *testing.T) {
	kthwtest.Turn(t, 1)
	// No node's certificate may be for a loopback address, so none is asked for.
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=kubelet-certificate-authority="}})
	runPod(t, c.Client(t), "worker", "endless", endlessLogs(t))

	ended := map[string]chan error{}
	for _, s := range []struct{ args, shows string }{
		{"logs endless --follow", "one line of /containerLogs/default/endless/main"},
		{"get pods --watch", "endless"},
		{"get --raw /api/v1/namespaces/default/pods?watch=true&timeoutSeconds=3600", `"name":"endless"`},
	} {
		out := &kthwtest.Log{}
		kubectl := exec.Command(kthwtest.Kubectl(t), append([]string{"--kubeconfig", c.Kubeconfig("admin")}, strings.Fields(s.args)...)...)
		kubectl.Stdout, kubectl.Stderr = out, out
		if err := kubectl.Start(); err != nil {
			t.Fatal(err)
		}
		end := make(chan error, 1)
		ended[s.args] = end
		go func() { end <- kubectl.Wait() }()
		t.Cleanup(func() { kubectl.Process.Kill() })
		kthwtest.WaitFor(t, "kubectl "+s.args, soon, func() error {
			if !strings.Contains(out.String(), s.shows) {
				return errors.New(out.String())
			}
			return nil
		})
	}
	inOrderAfter(t, c)
	for args, end := range ended {
		select {
		case <-end:
		case <-time.After(soon):
			t.Errorf("kubectl %s goes on without a server", args)
		}
	}
}
