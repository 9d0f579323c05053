package controllers

import (
	"context"
	"io"
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

// endWith lets the requests of config.Client for service accounts fail once ctx has ended. Upstream
// makes about a hundred, one after another, before the first controller runs, without a context
// (BuildControllers): a term that ends meanwhile would take longer to stop than it may.
func endWith(ctx context.Context, config *kcmconfig.Config) error {
	c := rest.AddUserAgent(rest.CopyConfig(config.Kubeconfig), kcmoptions.KubeControllerManagerUserAgent)
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &accounts{ctx, next} })
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return err
	}
	config.Client = client
	return nil
}

// accounts ends requests for service accounts with ctx, and refuses them afterwards.
type accounts struct {
	ctx  context.Context
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (a *accounts) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.Contains(r.URL.Path, accountsPath) {
		return a.next.RoundTrip(r)
	}
	if err := a.ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(a.ctx, cancel)
	end := func() { stop(); cancel() }
	answer, err := a.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		end()
		return nil, err
	}
	answer.Body = &body{answer.Body, end}
	return answer, nil
}

// body calls end when it is closed.
type body struct {
	io.ReadCloser
	end func()
}

func (b *body) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// WrappedRoundTripper lets client-go find the connections below.
func (a *accounts) WrappedRoundTripper() http.RoundTripper { return a.next }
