package controllers

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestTrimNodes reads nodes through the informer, as the scheduler does.
func TestTrimNodes(t *testing.T) {
	node := core.Node{ObjectMeta: meta.ObjectMeta{
		Name: "n", Labels: map[string]string{"a": "b"},
		ManagedFields: []meta.ManagedFieldsEntry{{Manager: "kubelet", Operation: meta.ManagedFieldsOperationUpdate, FieldsV1: meta.NewFieldsV1(`{"f:metadata":{}}`)}},
	}}
	list := core.NodeList{TypeMeta: meta.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, ListMeta: meta.ListMeta{ResourceVersion: "7"}, Items: []core.Node{node}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Get("watch") != "" {
			if r.URL.Query().Get("sendInitialEvents") != "" { // an API server that only lists
				http.Error(w, "{}", http.StatusUnprocessableEntity)
				return
			}
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		_ = json.NewEncoder(w).Encode(list)
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	nodes := factory.Core().V1().Nodes()
	nodes.Informer()
	if err := trimNodes(factory); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer func() { // before the server: it waits for the watch
		stop()
		factory.Shutdown()
	}()
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	got, err := nodes.Lister().Get("n")
	if err != nil || got.ManagedFields != nil || got.Labels["a"] != "b" {
		t.Errorf("got %+v and %v; want the node without managedFields", got, err)
	}
}
