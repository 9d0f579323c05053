// Package handshake learns from TLS handshakes which CAs a server trusts and shows.
package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"kthwd/appliance/pki"
)

// lookTime bounds a look at one server.
const lookTime = 5 * time.Second

// CAs learns which of the known CAs a server names, and which one has signed its certificate. With an own
// certificate it is an error that the server refuses that.
func CAs(ctx context.Context, address string, known []*x509.Certificate, own *tls.Certificate) (accepts []string, serves string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, "", err
	}
	shown := &tls.Certificate{}
	if own != nil {
		shown = own
	}
	var named [][]byte
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// The certificate is looked at, not believed: nothing secret is sent.
		InsecureSkipVerify: true, //nolint:gosec // see above
		ServerName:         host,
		GetClientCertificate: func(in *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			named = in.AcceptableCAs
			return shown, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, ca := range known {
				if s.PeerCertificates[0].CheckSignatureFrom(ca) == nil {
					serves = pki.CAID(ca)
				}
			}
			return nil
		},
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	if own != nil {
		if err := answers(ctx, conn, address); err != nil {
			return nil, "", err
		}
	}
	for _, ca := range known {
		if slices.ContainsFunc(named, func(subject []byte) bool { return bytes.Equal(subject, ca.RawSubject) }) {
			accepts = append(accepts, pki.CAID(ca))
		}
	}
	return accepts, serves, nil
}

// answers waits for an answer: in TLS 1.3 only that tells whether the server has accepted a certificate.
func answers(ctx context.Context, conn net.Conn, address string) error {
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	_, failed := fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address)
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // the alert says more than a write that has failed
		return errors.Join(err, failed)
	}
	return nil
}
