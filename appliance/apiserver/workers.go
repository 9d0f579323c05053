package apiserver

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	bootstraputil "k8s.io/cluster-bootstrap/token/util"
	certificatesapi "k8s.io/kubernetes/pkg/apis/certificates"

	"kthwd/appliance/apiserver/access"
	"kthwd/appliance/workers"
)

const (
	welcomeAge     = time.Second // of an answer that is given again
	welcomeTimeout = 5 * time.Second
)

// admitWorker refuses the creation of a request by a machine that joins or by a load balancer, if
// it would not be approved.
func (c *controllerIdentity) admitWorker(ctx context.Context, a admission.Attributes, csr *certificatesapi.CertificateSigningRequest) error {
	if c.desk == nil || a.GetOperation() != admission.Create || a.GetSubresource() != "" {
		return nil
	}
	contents, err := certificatesapi.ParseCSR(csr.Spec.Request)
	if err != nil {
		return nil // the API server's own validation refuses it
	}
	r := workers.Request{User: a.GetUserInfo().GetName(), Groups: a.GetUserInfo().GetGroups(), Signer: csr.Spec.SignerName, Contents: contents}
	if ids := a.GetUserInfo().GetExtra()[workers.CredentialKey]; len(ids) == 1 {
		r.Credential = ids[0]
	}
	if seconds := csr.Spec.ExpirationSeconds; seconds != nil {
		r.Life = time.Duration(*seconds) * time.Second
	}
	for _, u := range csr.Spec.Usages {
		r.Usages = append(r.Usages, string(u))
	}
	if err := c.desk.Admit(ctx, r); err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

// welcomed answers machines that join.
func (a *Server) welcomed(next access.Chain) access.Chain {
	if a.workers == nil {
		return next
	}
	return func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return &welcome{client: a.Loopback, next: next(api, c)}
	}
}

// welcome gives cluster-info to a machine that joins. The machine cannot say who it is: it
// must know the cluster before it shows its token. It says the ID of the token, which is no
// secret, and gets what the token's secret has signed: addresses and certificates of CAs, for
// as long as there is such a token. Every other request goes on to the API server, which
// refuses clients without credentials.
type welcome struct {
	client func() (*rest.Config, error)
	next   http.Handler

	mu   sync.Mutex
	info map[string]string // the data of cluster-info
	at   time.Time
}

func (w *welcome) ServeHTTP(resp http.ResponseWriter, req *http.Request) {
	if req.URL.Path == workers.WelcomePath && req.Method == http.MethodGet {
		if w.answer(resp, req) {
			return
		}
	}
	w.next.ServeHTTP(resp, req)
}

// answer reports whether it has answered.
func (w *welcome) answer(resp http.ResponseWriter, req *http.Request) bool {
	id := req.URL.Query().Get(workers.WelcomeToken)
	if !bootstraputil.IsValidBootstrapTokenID(id) {
		return false
	}
	info := w.clusterInfo(req.Context())
	answer := workers.Welcome{Kubeconfig: info[bootstrapapi.KubeConfigKey], Signature: info[bootstrapapi.JWSSignatureKeyPrefix+id]}
	if answer.Kubeconfig == "" || answer.Signature == "" {
		return false
	}
	resp.Header().Set("Content-Type", "application/json")
	resp.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(resp).Encode(answer) // it fails only when the client has gone
	return true
}

// clusterInfo reads the ConfigMap from the API server's cache, once a second at most, whoever
// asks however often.
func (w *welcome) clusterInfo(ctx context.Context) map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.at) < welcomeAge {
		return w.info
	}
	w.at, w.info = time.Now(), nil
	config, err := w.client()
	if err != nil {
		return nil
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), welcomeTimeout)
	defer cancel()
	there, err := client.CoreV1().ConfigMaps(metav1.NamespacePublic).Get(ctx, bootstrapapi.ConfigMapClusterInfo, metav1.GetOptions{ResourceVersion: "0"})
	if err == nil {
		w.info = there.Data
	}
	return w.info
}
