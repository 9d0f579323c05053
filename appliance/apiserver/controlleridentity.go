package apiserver

import (
	"context"
	"fmt"
	"io"
	"strings"

	"k8s.io/apiserver/pkg/admission"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	certificatesapi "k8s.io/kubernetes/pkg/apis/certificates"

	"kthwd/appliance/pki"
)

// controllerIdentity is the admission plugin that keeps the names of controllers from
// being signed: etcd accepts whoever has them, and kube-controller-manager signs any
// common name that somebody approves (certificates/signer/signer.go), with the CA that
// etcd trusts.
type controllerIdentity struct {
	*admission.Handler
	names pki.ControllerNames
}

const controllerIdentityName = "KthwdControllerIdentity"

var _ admission.ValidationInterface = (*controllerIdentity)(nil)

// protectControllerNames adds the plugin to the API server's options. It is on by default.
func protectControllerNames(o *apioptions.ServerRunOptions, names pki.ControllerNames) {
	generic := o.Admission.GenericAdmission
	generic.Plugins.Register(controllerIdentityName, func(io.Reader) (admission.Interface, error) {
		return &controllerIdentity{admission.NewHandler(admission.Create, admission.Update), names}, nil
	})
	generic.RecommendedPluginOrder = append(generic.RecommendedPluginOrder, controllerIdentityName)
}

// Validate implements admission.ValidationInterface. It refuses a request for a
// certificate, and, for requests that are older than this plugin, its approval and the
// certificate itself.
func (c *controllerIdentity) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != certificatesapi.Resource("certificatesigningrequests") {
		return nil
	}
	csr, ok := a.GetObject().(*certificatesapi.CertificateSigningRequest)
	// Signers outside kubernetes.io/ have a CA of their own.
	if !ok || !strings.HasPrefix(csr.Spec.SignerName, "kubernetes.io/") || !issues(a, csr) {
		return nil
	}
	request, err := certificatesapi.ParseCSR(csr.Spec.Request)
	if err != nil {
		return nil // the API server's own validation refuses it
	}
	if c.names.ClaimedBy(request) {
		return admission.NewForbidden(a, fmt.Errorf("%s belongs to the cluster's controllers, and opens etcd; kthwd pki controller issues their certificates", c.names))
	}
	return nil
}

// issues tells whether the request brings a certificate closer. Denying one and
// deleting its conditions do not.
func issues(a admission.Attributes, csr *certificatesapi.CertificateSigningRequest) bool {
	switch a.GetSubresource() {
	case "approval":
		for _, c := range csr.Status.Conditions {
			if c.Type == certificatesapi.CertificateApproved {
				return true
			}
		}
		return false
	case "status":
		return len(csr.Status.Certificate) > 0
	}
	return a.GetOperation() == admission.Create
}
