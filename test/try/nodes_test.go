package try

import (
	"fmt"
	"testing"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kthwd/appliance/fakenode"
	"kthwd/test/kthwtest"
)

// TestFakeNodesWhileOthersWrite requires fake nodes to be created while somebody else writes each of them
// as soon as it is there, as kube-controller-manager does.
func TestFakeNodesWhileOthersWrite(t *testing.T) {
	t.Parallel()
	client := kthwtest.Start(t, kthwtest.Options{}).Client(t)
	w, err := client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	go func() {
		for e := range w.ResultChan() {
			if n, ok := e.Object.(*core.Node); ok && n.Annotations["example.com/seen"] == "" {
				_, _ = client.CoreV1().Nodes().Patch(t.Context(), n.Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"example.com/seen":"true"}}}`), metav1.PatchOptions{})
			}
		}
	}()
	if _, err := fakenode.Create(t.Context(), client, fakenode.Most, "v1.0.0"); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "nodes that are Ready and without taints", kthwtest.Soon, func() error {
		list, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err == nil && len(list.Items) != fakenode.Most {
			return fmt.Errorf("%d nodes, want %d", len(list.Items), fakenode.Most)
		}
		if err != nil {
			return err
		}
		for i := range list.Items {
			if n := &list.Items[i]; len(n.Spec.Taints) > 0 || len(n.Status.Conditions) == 0 {
				return fmt.Errorf("%s has %v, %v", n.Name, n.Spec.Taints, n.Status.Conditions)
			}
		}
		return nil
	})
}
