package envtest

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

func TestBox(t *testing.T) {
	cluster := &envtest.Environment{CRDDirectoryPaths: []string{"crds"}, ErrorIfCRDPathMissing: true}
	config, err := cluster.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	box := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.com/v1", "kind": "Box",
		"metadata": map[string]any{"name": "small", "namespace": "default"},
		"spec":     map[string]any{"size": int64(0)},
	}}
	if err := c.Create(t.Context(), box); err == nil {
		t.Fatal("a box of size 0 was accepted")
	}
	box.Object["spec"] = map[string]any{"size": int64(1)}
	if err := c.Create(t.Context(), box); err != nil {
		t.Fatal(err)
	}
}
