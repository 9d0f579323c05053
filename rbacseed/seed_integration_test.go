package rbacseed

import (
	"context"
	"os"
	"testing"
	"time"

	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeconfigEnv names a cluster admin's kubeconfig. The tests repeatedly delete and damage
// the two objects of the seed: use a disposable cluster.
const kubeconfigEnv = "KTHWD_TEST_KUBECONFIG"

// TestAgainstAPIServer runs the cases against a real kube-apiserver.
func TestAgainstAPIServer(t *testing.T) {
	path := os.Getenv(kubeconfigEnv)
	if path == "" {
		t.Skipf("%s names no kubeconfig of a test cluster", kubeconfigEnv)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1 // no limit: eight controllers in one process share the client
	semantics(t, cfg)

	t.Run("component", func(t *testing.T) {
		client, err := rbacv1client.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := cluster{t, t.Context(), client}
		c.reset()
		t.Cleanup(func() { cluster{t, context.Background(), client}.reset() })
		r := start(t, Config{Client: func() (rbacv1client.RbacV1Interface, error) { return client, nil }})
		r.WaitReady(time.Minute)
		c.wantSeed()
		r.Stop()
	})
}
