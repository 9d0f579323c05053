package appliance

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"kthwd/appliance/pki"
)

// clusterTLS is how the members of a cluster talk to each other: kubernetes.pem
// on both sides, of the one CA.
func clusterTLS(l pki.Layout) (*tls.Config, error) {
	pem, err := os.ReadFile(l.CA())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	cert, err := tls.LoadX509KeyPair(l.Cert(pki.NameKubernetes), l.Key(pki.NameKubernetes))
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}
