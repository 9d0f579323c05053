package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

const (
	kubeletPackage = "k8s.io/kubernetes/cmd/kubelet"
	archiveEnv     = "KTHWD_E2E_IMAGE"
)

// TestRealNode joins a real kubelet with the certificate of kthwd pki node. The
// API server may use it only with the seed: without, logs, exec, port-forward
// and the node proxy are refused. A seed that an administrator has changed for good stays
// so; one that is deleted is made again at once.
func TestRealNode(t *testing.T) {
	if !onWorkerMachine(t) {
		return
	}
	c := kthwtest.Start(t, kthwtest.Options{Plain: true})
	// The kubelet remembers an allowed request for 5 minutes: the refusal comes first.
	c.Kubectl(t, "annotate", "clusterrolebinding", "system:kube-apiserver", "rbac.authorization.kubernetes.io/autoupdate=false", "--overwrite")
	c.Kubectl(t, "patch", "clusterrolebinding", "system:kube-apiserver", "--type=merge", "--patch", `{"subjects":[]}`)
	kubelet := startWorker(t, c, os.Getenv(archiveEnv))
	pod := deployHello(t, c)

	t.Run("refused without the seed", func(t *testing.T) { wantRefused(t, c, pod) })
	c.Kubectl(t, "delete", "clusterrolebinding", "system:kube-apiserver")
	t.Run("allowed when it is made again", func(t *testing.T) { wantAllowed(t, c, kubelet, pod) })
	t.Run("deleted", func(t *testing.T) { wantDeleted(t, c) })
}

// onWorkerMachine is onOwnMachine for a test with a real kubelet.
func onWorkerMachine(t *testing.T) bool {
	t.Helper()
	requireE2E(t)
	if lacks := lackingForWorker(); lacks != "" {
		t.Skip(lacks)
	}
	if os.Getenv(machineEnv) == "" && os.Geteuid() == 0 {
		archive := filepath.Join(t.TempDir(), "hello.tar")
		buildHello(t, archive)
		t.Setenv(archiveEnv, archive)
		removeCgroups(t)
	}
	return onOwnMachine(t, workerAddress+"/24", kubeletPackage)
}

// deployHello runs a Deployment and returns its pod's name.
func deployHello(t *testing.T, c *kthwtest.Controller) string {
	t.Helper()
	c.Kubectl(t, "create", "namespace", namespace)
	c.Kubectl(t, "-n", namespace, "create", "deployment", "hello", "--image="+helloImage, "--", "/hello", "serve")
	var pod corev1.Pod
	kthwtest.WaitFor(t, "pod running", kthwtest.Soon, func() error {
		list, err := c.Client(t).CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			return fmt.Errorf("%w: %d pods", err, len(list.Items))
		}
		pod = list.Items[0]
		if pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("%s: %s %v", pod.Name, pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		return nil
	})
	if !strings.HasPrefix(pod.Status.PodIP, "10.200.0.") || pod.Spec.NodeName != workerName {
		t.Errorf("pod: got address %s on %s, want 10.200.0.x on %s", pod.Status.PodIP, pod.Spec.NodeName, workerName)
	}
	c.Kubectl(t, "-n", namespace, "rollout", "status", "deployment/hello", "--timeout=60s")
	return pod.Name
}

// request is a command of kubectl and what a right answer has.
type request struct {
	args []string
	want string
}

// viaKubelet are requests for which the API server asks the kubelet.
func viaKubelet(pod string) map[string]request {
	const node = "/api/v1/nodes/" + workerName
	return map[string]request{
		"logs":         {[]string{"-n", namespace, "logs", pod}, "hello, serving on 8080"},
		"exec":         {[]string{"-n", namespace, "exec", pod, "--", "/hello", "say", "it works"}, "it works"},
		"node metrics": {[]string{"get", "--raw", node + "/proxy/metrics"}, "kubelet_running_pods"},
		"node logs":    {[]string{"get", "--raw", node + "/proxy/logs/"}, "<pre>"},
		"node pods":    {[]string{"get", "--raw", node + "/proxy/pods"}, `"` + pod + `"`},
	}
}

func wantRefused(t *testing.T, c *kthwtest.Controller, pod string) {
	for name, request := range viaKubelet(pod) {
		out, err := c.TryKubectl(t, request.args...)
		if err == nil || !strings.Contains(out, "Forbidden") || !strings.Contains(out, "user=kubernetes") {
			t.Errorf("%s: got %v %q, want Forbidden for user=kubernetes", name, err, firstLines(out))
		}
	}
	out, err := forward(t, c, pod, func(string) error { return nil })
	if err == nil || !strings.Contains(out+err.Error(), "Forbidden") {
		t.Errorf("port-forward: got %v %q, want Forbidden", err, firstLines(out))
	}
}

func wantAllowed(t *testing.T, c *kthwtest.Controller, kubelet *daemon, pod string) {
	waitNodeReady(t, c, kubelet)
	for name, request := range viaKubelet(pod) {
		kthwtest.WaitFor(t, name, kthwtest.Soon, func() error {
			out, err := c.TryKubectl(t, request.args...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, firstLines(out))
			}
			return lacks(out, request.want)
		})
	}
	kthwtest.WaitFor(t, "port-forward", kthwtest.Soon, func() error {
		out, err := forward(t, c, pod, func(address string) error { return wantHello(address, pod) })
		if err != nil {
			return fmt.Errorf("%w: %s", err, firstLines(out))
		}
		return nil
	})
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> 8080`)

// forward runs kubectl port-forward while use uses the address it listens on.
func forward(t *testing.T, c *kthwtest.Controller, pod string, use func(address string) error) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, kthwtest.Kubectl(t), "--kubeconfig", c.Kubeconfig("admin"), "-n", namespace, "port-forward", "--address=127.0.0.1", "pod/"+pod, ":8080")
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		in.Close()
		ended <- err
	}()
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if m := forwarding.FindStringSubmatch(lines.Text()); m != nil {
			go io.Copy(io.Discard, out)
			err := use(m[1])
			cancel()
			<-ended
			return said.String(), err
		}
	}
	return said.String(), fmt.Errorf("kubectl port-forward: %w", <-ended)
}

func wantHello(address, pod string) error {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return lacks(string(body), "hello from "+pod)
}

// wantDeleted ends the workload as a user does, so that the kubelet cleans up.
func wantDeleted(t *testing.T, c *kthwtest.Controller) {
	c.Kubectl(t, "-n", namespace, "delete", "deployment", "hello")
	kthwtest.WaitFor(t, "pods gone", kthwtest.Soon, func() error {
		list, err := c.Client(t).CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%w: %d pods", err, len(list.Items))
		}
		return nil
	})
	kthwtest.WaitFor(t, "shims gone", kthwtest.Soon, func() error {
		if pids := shims(t); len(pids) > 0 {
			return fmt.Errorf("shims run: %v", pids)
		}
		return nil
	})
}

func firstLines(s string) string { return s[:min(len(s), 1000)] }
