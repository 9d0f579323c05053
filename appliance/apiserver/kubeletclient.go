package apiserver

import (
	"crypto/x509"
	"encoding/pem"
	"os"

	"kthwd/appliance/pki"
)

// KubeletClientUser returns the common name of the API server's kubelet client
// certificate, or "kubernetes", the name in the guide, if the file cannot be read.
func KubeletClientUser(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return pki.NameKubernetes
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return pki.NameKubernetes
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || cert.Subject.CommonName == "" {
		return pki.NameKubernetes
	}
	return cert.Subject.CommonName
}
