package incident

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// An aggregated API that nobody serves keeps namespaces in Terminating, while every
// component is ready (C9).
func TestBrokenAPIService(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	client, err := dynamic.NewForConfig(c.RESTConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	services := client.Resource(schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"})
	_, err = services.Create(t.Context(), &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
		"metadata": map[string]any{"name": "v1.incident.test"},
		"spec": map[string]any{
			"group": "incident.test", "version": "v1", "groupPriorityMinimum": int64(100), "versionPriority": int64(100),
			"service": map[string]any{"name": "nobody", "namespace": "default"}, "insecureSkipTLSVerify": true,
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := look(t, c, incident{
		name: "C9 broken APIService", kind: "apiservice",
		cause: "v1.incident.test", do: "delete apiservice v1.incident.test", bridge: "-", log: "incident.test",
	})
	shell(t, c, found.Do)
	healthy(t, c, "apiservice")
}
