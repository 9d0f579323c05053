package pki

import (
	"crypto/tls"
)

// ClientTLS is how the members of a cluster talk to each other: kubernetes.pem
// on both sides, of the one CA.
func ClientTLS(l Layout) (*tls.Config, error) {
	pool, err := Pool(l.CA())
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(l.Cert(NameKubernetes), l.Key(NameKubernetes))
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}
