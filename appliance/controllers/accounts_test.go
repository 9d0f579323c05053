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
	account := func() error {
		_, err := config.Client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Get(context.Background(), "namespace-controller", metav1.GetOptions{})
		return err
	}
	if err := account(); err != nil || <-asked != accountsPath+"/namespace-controller" {
		t.Fatalf("during the term: got %v", err)
	}
	if config.Kubeconfig.WrapTransport != nil {
		t.Error("the other clients end with the term, too")
	}
	open := make(chan error, 1)
	go func() {
		_, err := config.Client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Get(context.Background(), "never-answered", metav1.GetOptions{})
		open <- err
	}()
	<-asked
	end()
	if err := <-open; !errors.Is(err, context.Canceled) {
		t.Errorf("a request in flight at the end of the term: got %v, want its end", err)
	}
	if err := account(); !errors.Is(err, context.Canceled) {
		t.Errorf("after the term: got %v, want its end", err)
	}
	if _, err := config.Client.CoreV1().Pods("default").Get(t.Context(), "web", metav1.GetOptions{}); err != nil {
		t.Errorf("a pod after the term: %v", err)
	}
	if path := <-asked; path != "/api/v1/namespaces/default/pods/web" || len(asked) > 0 {
		t.Errorf("after the term: %s was asked for, and %d more", path, len(asked))
	}
}
