package apiserver

import (
	"context"
	"fmt"
	"io"
	"strings"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	certificatesapi "k8s.io/kubernetes/pkg/apis/certificates"

	"kthwd/appliance/pki"
	"kthwd/appliance/workers"
)

// controllerIdentity is an admission plugin. It prevents certificates with the names of
// controllers, because etcd accepts every holder of those names, and
// kube-controller-manager signs any approved common name (certificates/signer/signer.go)
// with the CA that etcd trusts.
//
// It also refuses the requests of machines that join which nobody would approve, and records each
// certificate in the ledger before the API server stores it.
type controllerIdentity struct {
	*admission.Handler
	identityPlugin
}

// identityPlugin is what the plugin works with.
type identityPlugin struct {
	names  pki.ControllerNames
	desk   *workers.Desk // nil refuses nothing
	signed SignedFunc    // nil records nothing
}

const controllerIdentityName = "KthwdControllerIdentity"

var _ admission.ValidationInterface = (*controllerIdentity)(nil)

// protectControllerNames adds the plugin to the API server's options, on by default.
func protectControllerNames(o *apioptions.ServerRunOptions, plugin identityPlugin) {
	generic := o.Admission.GenericAdmission
	generic.Plugins.Register(controllerIdentityName, func(io.Reader) (admission.Interface, error) {
		return &controllerIdentity{admission.NewHandler(admission.Create, admission.Update), plugin}, nil
	})
	generic.RecommendedPluginOrder = append(generic.RecommendedPluginOrder, controllerIdentityName)
}

// Validate implements admission.ValidationInterface. It refuses the creation of a
// request, and for requests older than this plugin their approval and the certificate.
func (c *controllerIdentity) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != certificatesapi.Resource("certificatesigningrequests") {
		return nil
	}
	csr, ok := a.GetObject().(*certificatesapi.CertificateSigningRequest)
	if !ok {
		return nil
	}
	if err := c.admitWorker(ctx, a, csr); err != nil {
		return err
	}
	// Signers outside kubernetes.io/ have a CA of their own.
	if !strings.HasPrefix(csr.Spec.SignerName, "kubernetes.io/") || !issues(a, csr) {
		return nil
	}
	request, err := certificatesapi.ParseCSR(csr.Spec.Request)
	if err != nil {
		return nil // the API server's own validation refuses it
	}
	if c.names.ClaimedBy(request) {
		return admission.NewForbidden(a, fmt.Errorf("%s belongs to the cluster's controllers, and opens etcd; kthwd pki controller issues their certificates", c.names))
	}
	if request.Subject.CommonName == user.Anonymous {
		return admission.NewForbidden(a, fmt.Errorf("%s is the name of clients without credentials", user.Anonymous))
	}
	if err := c.record(ctx, a, csr); err != nil {
		return admission.NewForbidden(a, fmt.Errorf("the certificate cannot be recorded: %w", err))
	}
	return nil
}

// issues reports whether the operation leads to a certificate. Denying a request and
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
