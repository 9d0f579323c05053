package status

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
)

// WebClients looks at which clients the web configuration of the metrics address lets in.
type WebClients struct {
	Address string // HOST:PORT of the metrics address
	Web     string // its web configuration file; "" for none
	CA      string // file of the cluster's CA
}

// Findings returns a finding if the configuration asks for client certificates and takes more of
// them than it seems to: every certificate of the cluster, each worker's included, or any at all.
// An address of loopback is open to the users of the machine anyway.
func (c WebClients) Findings() []Finding {
	host, _, err := net.SplitHostPort(c.Address)
	if c.Web == "" || err != nil || loopback(host) {
		return nil
	}
	w, err := ReadWeb(c.Web)
	if err != nil || !w.ClientCerts || w.Users {
		return nil
	}
	f := Finding{Health: Healthy, Kind: kindMetricsClients}
	switch {
	case !w.verifies:
		f.Text = fmt.Sprintf("%s asks for client certificates, and lets in clients without one of its CA all the same", c.Web)
		f.Do = "set client_auth_type to RequireAndVerifyClientCert in " + c.Web
	case !w.named && w.trusts(c.CA):
		f.Text = fmt.Sprintf("%s lets in every certificate of the cluster's CA, each worker's included", c.Web)
		f.Do = "name the clients in client_allowed_sans of " + c.Web + ", or set client_ca_file to a CA of their own"
	default:
		return nil
	}
	return []Finding{f}
}

// trusts reports whether a CA of the file is one of those whose certificates are accepted.
func (w Web) trusts(file string) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for _, ca := range certificatesIn(data) {
		for _, accepted := range certificatesIn(w.clientCAs) {
			if accepted.Equal(ca) {
				return true
			}
		}
	}
	return false
}

// certificatesIn returns the certificates of a PEM text; what is no certificate is left out.
func certificatesIn(text []byte) (all []*x509.Certificate) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, cert)
		}
	}
	return all
}
