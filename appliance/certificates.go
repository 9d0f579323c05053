package appliance

import (
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"

	"kthwd/appliance/pki"
	"kthwd/appliance/status"
)

// usedFiles are the certificates and kubeconfigs that the programs are told to
// use, and those that kthwd and its verbs use beside them, each once.
func (p *plant) usedFiles() (files []string) {
	add := func(path string) {
		if path != "" && !slices.Contains(files, path) {
			files = append(files, path)
		}
	}
	for _, program := range []string{nameEtcd, nameAPIServer, nameControllerManager, nameScheduler} {
		for _, a := range p.args[program] {
			if namesCertificate(a.key) {
				add(a.value)
			}
		}
	}
	add(p.layout.Cert(pki.NameHealth))
	add(p.layout.Kubeconfig(pki.NameAdmin))
	if p.o.Metrics.Web != "" {
		if w, err := status.ReadWeb(p.o.Metrics.Web); err == nil {
			add(w.CertFile)
			add(w.CAFile)
		}
	}
	return files
}

// namesCertificate tells whether the value of a program's flag is a file of
// certificates, or a kubeconfig.
func namesCertificate(key string) bool {
	if strings.HasPrefix(key, "service-account-") {
		return key == "service-account-key-file"
	}
	for _, end := range []string{"ca-file", "cert-file", "client-certificate", "certificate-authority", "kubeconfig"} {
		if strings.HasSuffix(key, end) {
			return true
		}
	}
	return false
}

// loopbackCertificate is the one that the API server has made for itself in memory,
// for a year; nil until then (apiserver/pkg/server/options/serving_with_loopback.go).
func (a *apiServer) loopbackCertificate() []status.Certificate {
	loopback, err := a.Loopback()
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(loopback.CAData)
	if block == nil {
		return nil
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return []status.Certificate{{File: "kube-apiserver, in memory", Subject: "loopback", Use: "server", NotAfter: c.NotAfter}}
}
