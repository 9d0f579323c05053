package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
)

// ClientTLS is how the members of a cluster talk to each other: kubernetes.pem
// on both sides, of the one CA.
func ClientTLS(l Layout) (*tls.Config, error) {
	pem, err := os.ReadFile(l.CA())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	cert, err := tls.LoadX509KeyPair(l.Cert(NameKubernetes), l.Key(NameKubernetes))
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}
