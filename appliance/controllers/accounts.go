package controllers

import (
	"context"
	"net/http"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	kcmconfig "k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
)

// accountsPath is where kube-controller-manager looks for, and makes, the service account of
// each of its controllers, and gets their tokens.
const accountsPath = "/api/v1/namespaces/kube-system/serviceaccounts"

// endWith lets the requests for service accounts fail once ctx has ended. Upstream makes some
// hundred of them one after the other before the first controller runs, without a context
// (BuildControllers): a term that ends meanwhile would take longer to stop than it may.
func endWith(ctx context.Context, config *kcmconfig.Config) error {
	c := rest.AddUserAgent(config.Kubeconfig, kcmoptions.KubeControllerManagerUserAgent) // a copy
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &accounts{ctx, next} })
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return err
	}
	config.Client = client
	return nil
}

// accounts refuses requests for service accounts when ctx has ended.
type accounts struct {
	ctx  context.Context
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (a *accounts) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := a.ctx.Err(); err != nil && strings.Contains(r.URL.Path, accountsPath) {
		return nil, err
	}
	return a.next.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the connections below.
func (a *accounts) WrappedRoundTripper() http.RoundTripper { return a.next }
