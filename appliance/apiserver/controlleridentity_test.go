package apiserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	certificatesapi "k8s.io/kubernetes/pkg/apis/certificates"

	"kthwd/appliance/pki"
)

func certificateRequest(t *testing.T, cn string, names ...string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}, DNSNames: names}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestControllerNamesAreNotSigned(t *testing.T) {
	byName := pki.ControllerNames{CommonNames: []string{"kubernetes"}}
	byHost := pki.ControllerNames{Hosts: []string{"kubernetes.default.svc"}}
	const client, serving = "kubernetes.io/kube-apiserver-client", "kubernetes.io/kubelet-serving"
	approved := []certificatesapi.CertificateSigningRequestCondition{{Type: certificatesapi.CertificateApproved}}
	denied := []certificatesapi.CertificateSigningRequestCondition{{Type: certificatesapi.CertificateDenied}}
	for _, test := range []struct {
		name        string
		names       pki.ControllerNames
		signer      string
		request     []byte
		subresource string
		conditions  []certificatesapi.CertificateSigningRequestCondition
		certificate []byte
		operation   admission.Operation
		refused     bool
	}{
		{"a controller's name", byName, client, certificateRequest(t, "kubernetes"), "", nil, nil, admission.Create, true},
		{"by the signer of old", byName, "kubernetes.io/legacy-unknown", certificateRequest(t, "kubernetes"), "", nil, nil, admission.Create, true},
		{"a user's", byName, client, certificateRequest(t, "dev-user"), "", nil, nil, admission.Create, false},
		{"a host of controllers", byHost, serving, certificateRequest(t, "system:node:w1", "w1", "kubernetes.default.svc"), "", nil, nil, admission.Create, true},
		{"a wildcard over it", byHost, serving, certificateRequest(t, "system:node:w1", "*.default.svc"), "", nil, nil, admission.Create, true},
		{"a node's own", byHost, serving, certificateRequest(t, "system:node:w1", "w1"), "", nil, nil, admission.Create, false},
		{"a signer of another CA", byName, "example.org/web", certificateRequest(t, "kubernetes"), "", nil, nil, admission.Create, false},
		{"approving an old one", byName, client, certificateRequest(t, "kubernetes"), "approval", approved, nil, admission.Update, true},
		{"denying an old one", byName, client, certificateRequest(t, "kubernetes"), "approval", denied, nil, admission.Update, false},
		{"signing an old one", byName, client, certificateRequest(t, "kubernetes"), "status", approved, []byte("x"), admission.Update, true},
		{"labelling an old one", byName, client, certificateRequest(t, "kubernetes"), "", approved, nil, admission.Update, false},
		{"the name of clients without credentials", byName, client, certificateRequest(t, "system:anonymous"), "", nil, nil, admission.Create, true},
		{"no request", byName, client, []byte("x"), "", nil, nil, admission.Create, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := apioptions.NewServerRunOptions()
			protectControllerNames(opts, identityPlugin{names: test.names})
			if errs := opts.Admission.GenericAdmission.Validate(); len(errs) > 0 {
				t.Fatal(errs)
			}
			csr := &certificatesapi.CertificateSigningRequest{
				Spec:   certificatesapi.CertificateSigningRequestSpec{SignerName: test.signer, Request: test.request},
				Status: certificatesapi.CertificateSigningRequestStatus{Conditions: test.conditions, Certificate: test.certificate},
			}
			plugin := &controllerIdentity{admission.NewHandler(admission.Create, admission.Update), identityPlugin{names: test.names}}
			err := plugin.Validate(t.Context(), admission.NewAttributesRecord(csr, nil, certificatesapi.Kind("CertificateSigningRequest").WithVersion("v1"), "", "csr",
				certificatesapi.Resource("certificatesigningrequests").WithVersion("v1"), test.subresource, test.operation, nil, false, nil), nil)
			if got := apierrors.IsForbidden(err); got != test.refused || err != nil && !got {
				t.Errorf("refused: %v (%v), want %v", got, err, test.refused)
			}
		})
	}
}
