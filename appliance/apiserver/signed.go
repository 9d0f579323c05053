package apiserver

import (
	"context"
	"crypto/x509"
	"encoding/pem"

	"k8s.io/apiserver/pkg/admission"
	certificatesapi "k8s.io/kubernetes/pkg/apis/certificates"
)

// Signed is a certificate that was signed for a CertificateSigningRequest.
type Signed struct {
	Certificate *x509.Certificate
	Signer      string
	Request     string // the name of the request
	User        string // author of the request
}

// SignedFunc is called with a certificate before anybody can fetch it.
type SignedFunc func(context.Context, Signed) error

// record tells of the certificate of a request that is about to be stored.
func (c *controllerIdentity) record(ctx context.Context, a admission.Attributes, csr *certificatesapi.CertificateSigningRequest) error {
	if c.signed == nil || a.GetSubresource() != "status" || a.IsDryRun() {
		return nil
	}
	block, _ := pem.Decode(csr.Status.Certificate)
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil // the API server's own validation refuses it
	}
	return c.signed(ctx, Signed{Certificate: cert, Signer: csr.Spec.SignerName, Request: csr.Name, User: csr.Spec.Username})
}
