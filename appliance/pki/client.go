package pki

import (
	"crypto/tls"
)

// ClientTLS is how the members of a cluster talk to each other: the certificate of their
// etcd member on both sides, of the CA that it trusts.
func ClientTLS(l Layout) (*tls.Config, error) {
	files := StageOf(l).Files(l)
	pool, err := Pool(files.CA)
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}
