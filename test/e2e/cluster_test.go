package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/appliance/pki"
	"kthwd/test/kthwtest"
)

// The workload of the tests: what a new user of any cluster would try.
const (
	namespace  = "shop"
	fakeNode   = "worker-0"
	secretName = "card"
	plaintext  = "4111-1111-1111-1111"
)

// apply gives kubectl a manifest on its standard input, as the guide does.
func apply(t *testing.T, c *kthwtest.Controller, manifest string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kthwtest.Kubectl(t), "--kubeconfig", c.Kubeconfig("admin"), "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v\n%s\n%s", err, out, manifest)
	}
}

// addFakeNode makes a worker that says it is ready. Nothing runs on it.
func addFakeNode(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: fakeNode},
		Status:     corev1.NodeStatus{Capacity: capacity, Allocatable: capacity, Conditions: []corev1.NodeCondition{ready()}},
	}
	if _, err := c.Client(t).CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func ready() corev1.NodeCondition {
	now := metav1.Now()
	return corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: now, LastTransitionTime: now}
}

// beat is the fake node's sign of life: without one, it is taken for dead after 50 s.
func beat(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	kthwtest.WaitFor(t, "heartbeat of the fake node", kthwtest.Soon, func() error {
		nodes := c.Client(t).CoreV1().Nodes()
		node, err := nodes.Get(t.Context(), fakeNode, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.Conditions = []corev1.NodeCondition{ready()}
		_, err = nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		return err
	})
}

// waitBound waits until a deployment has replicas pods, all on a node.
func waitBound(t *testing.T, c *kthwtest.Controller, deployment string, replicas int) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	kthwtest.WaitFor(t, fmt.Sprintf("%d pods of %s on a node", replicas, deployment), kthwtest.Soon, func() error {
		list, err := c.Client(t).CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + deployment})
		if err != nil {
			return err
		}
		pods = list.Items
		if len(pods) != replicas {
			return fmt.Errorf("got %d pods, want %d", len(pods), replicas)
		}
		for _, p := range pods {
			if p.Spec.NodeName == "" {
				return fmt.Errorf("%s is on no node: %v", p.Name, p.Status.Conditions)
			}
		}
		return nil
	})
	return pods
}

// certPool is a file of certificates.
func certPool(t *testing.T, path string) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(readFile(t, path))) {
		t.Fatalf("%s holds no certificate", path)
	}
	return pool
}

// etcdClient is an etcd client with the member's own certificate.
func etcdClient(t *testing.T, c *kthwtest.Controller, endpoint string) *clientv3.Client {
	t.Helper()
	config, err := pki.ClientTLS(pki.Layout{Dir: c.Dir})
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: config, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// storedSecret is what etcd holds of the workload's secret.
func storedSecret(t *testing.T, c *kthwtest.Controller, endpoint string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	key := "/registry/secrets/" + namespace + "/" + secretName
	got, err := etcdClient(t, c, endpoint).Get(ctx, key)
	if err != nil {
		t.Fatalf("read %s at %s: %v", key, endpoint, err)
	}
	if len(got.Kvs) != 1 {
		t.Fatalf("%s at %s: got %d values, want 1", key, endpoint, len(got.Kvs))
	}
	return string(got.Kvs[0].Value)
}

// wantSecret checks that etcd's value is encrypted by provider, and that the
// API still has the plain text.
func wantSecret(t *testing.T, c *kthwtest.Controller, endpoint, provider string) {
	t.Helper()
	stored := storedSecret(t, c, endpoint)
	if prefix := "k8s:enc:" + provider + ":v1:"; !strings.HasPrefix(stored, prefix) {
		t.Errorf("secret in etcd: got %q…, want %q…", stored[:min(len(stored), 40)], prefix)
	}
	if strings.Contains(stored, plaintext) {
		t.Error("the secret's plain text is in etcd")
	}
	secret, err := c.Client(t).CoreV1().Secrets(namespace).Get(t.Context(), secretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(secret.Data["number"]); got != plaintext {
		t.Errorf("secret by the API: got %q, want %q", got, plaintext)
	}
}

// kubernetesVersion is the one that go.mod asks for.
func kubernetesVersion(t *testing.T) string {
	t.Helper()
	for line := range strings.SplitSeq(readFile(t, filepath.Join(kthwtest.Root(), "go.mod")), "\n") {
		if version, found := strings.CutPrefix(strings.TrimSpace(line), "k8s.io/kubernetes v"); found {
			return "v" + version
		}
	}
	t.Fatal("go.mod names no k8s.io/kubernetes")
	return ""
}
