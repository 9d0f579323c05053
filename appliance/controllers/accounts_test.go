package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/controller-manager/pkg/clientbuilder"
	kcmconfig "k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
)

// No service account is asked for after the end of a term; what a controller still writes is.
func TestAccountsEndWithTheTerm(t *testing.T) {
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		if strings.HasSuffix(r.URL.Path, "/never-answered") {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, "{}")
	}))
	defer server.Close()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	config := &kcmconfig.Config{Kubeconfig: &rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}}
	if err := endWith(ctx, config); err != nil {
		t.Fatal(err)
	}
	account := func(name string) error {
		_, err := config.Client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Get(context.Background(), name, metav1.GetOptions{})
		return err
	}
	if err := account("namespace-controller"); err != nil || <-asked != accountsPath+"/namespace-controller" {
		t.Fatalf("during the term: got %v", err)
	}
	if config.Kubeconfig.WrapTransport != nil {
		t.Error("the other clients end with the term, too")
	}
	open := make(chan error, 1)
	go func() { open <- account("never-answered") }()
	<-asked
	end()
	if err := <-open; !errors.Is(err, context.Canceled) {
		t.Errorf("a request in flight at the end of the term: got %v, want its end", err)
	}
	if err := account("job-controller"); !errors.Is(err, context.Canceled) {
		t.Errorf("after the term: got %v, want its end", err)
	}
	if _, err := config.Client.CoreV1().Pods("default").Get(t.Context(), "web", metav1.GetOptions{}); err != nil {
		t.Errorf("a pod after the term: %v", err)
	}
	if path := <-asked; path != "/api/v1/namespaces/default/pods/web" || len(asked) > 0 {
		t.Errorf("after the term: %s was asked for, and %d more", path, len(asked))
	}
}

// A controller that has no token when its term ends learns it at once, for every object that it
// still has, and sends nothing.
func TestNoTokenAfterTheTerm(t *testing.T) {
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"kind":"ServiceAccount","apiVersion":"v1"}`)
	}))
	defer server.Close()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	kubeconfig := &rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"}}
	config := &kcmconfig.Config{Kubeconfig: kubeconfig}
	if err := endWith(ctx, config); err != nil {
		t.Fatal(err)
	}
	builder := clientbuilder.NewDynamicClientBuilder(rest.AnonymousClientConfig(kubeconfig), config.Client.CoreV1(), metav1.NamespaceSystem)
	client, err := builder.Client("clusterrole-aggregation-controller")
	if err != nil || <-asked != accountsPath+"/clusterrole-aggregation-controller" {
		t.Fatalf("during the term: got %v", err)
	}
	end()
	for range 4 {
		_, err := client.CoreV1().Pods("default").Get(context.Background(), "web", metav1.GetOptions{})
		if err == nil || !strings.Contains(err.Error(), `invalid header field value for "Authorization"`) {
			t.Errorf("got %v, want a token that no request can carry", err)
		}
	}
	if len(asked) > 0 {
		t.Errorf("%s was asked for after the term", <-asked)
	}
}
