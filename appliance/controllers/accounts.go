package controllers

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	kcmconfig "k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
)

// accountsPath is where kube-controller-manager looks for, and makes, the service account of
// each of its controllers, and gets their tokens.
const accountsPath = "/api/v1/namespaces/kube-system/serviceaccounts"

// endWith lets the requests of config.Client for service accounts end with ctx. Upstream makes
// them without a context: about a hundred, one after another, before the first controller runs
// (BuildControllers), and two for the token of each controller, when it makes its first request.
func endWith(ctx context.Context, config *kcmconfig.Config) error {
	c := rest.AddUserAgent(rest.CopyConfig(config.Kubeconfig), kcmoptions.KubeControllerManagerUserAgent)
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return &accounts{ctx: ctx, next: next} })
	client, err := kubernetes.NewForConfig(c)
	if err != nil {
		return err
	}
	config.Client = client
	return nil
}

// accounts ends requests for service accounts with ctx. Afterwards it refuses them for accounts
// that nobody has asked for before; those requests make the accounts. It answers the others
// itself, with a token that no request can carry.
//
// A refusal would not end the request for a token. Upstream repeats it for 3.5 s, once for each
// object that its controller has in the queue
// (k8s.io/controller-manager/pkg/clientbuilder/client_builder_dynamic.go: tokenSourceImpl.Token),
// and kcmapp.Run gives up after 10 s on controllers that do not stop.
type accounts struct {
	ctx   context.Context
	next  http.RoundTripper
	asked sync.Map // names of the service accounts asked for before the end
}

// RoundTrip implements http.RoundTripper.
func (a *accounts) RoundTrip(r *http.Request) (*http.Response, error) {
	_, account, found := strings.Cut(r.URL.Path, accountsPath)
	if !found {
		return a.next.RoundTrip(r)
	}
	name, token := strings.CutSuffix(strings.Trim(account, "/"), "/token")
	if err := a.ctx.Err(); err != nil {
		if _, asked := a.asked.Load(name); !asked {
			return nil, err
		}
		return afterTheEnd(r, name, token)
	}
	if name != "" {
		a.asked.Store(name, true)
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

// noToken is the token of a controller whose term has ended. A header cannot contain its line
// feed: net/http's Transport returns an error before it sends anything.
const noToken = "the term has ended\n"

// afterTheEnd answers a request for a service account, or for its token.
func afterTheEnd(r *http.Request, name string, token bool) (*http.Response, error) {
	var answer any = &corev1.ServiceAccount{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name},
	}
	if token {
		answer = &authenticationv1.TokenRequest{
			TypeMeta: metav1.TypeMeta{APIVersion: authenticationv1.SchemeGroupVersion.String(), Kind: "TokenRequest"},
			Spec:     authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64)},
			Status:   authenticationv1.TokenRequestStatus{Token: noToken},
		}
	}
	content, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	if r.Body != nil {
		_ = r.Body.Close() // as an http.RoundTripper must; nothing is read
	}
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header:        http.Header{"Content-Type": {"application/json"}},
		ContentLength: int64(len(content)), Body: io.NopCloser(bytes.NewReader(content)),
	}, nil
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
