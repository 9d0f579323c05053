package etcdca

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"kthwd/appliance/etcd/peers"
	"kthwd/appliance/pki"
)

// lookTimeout bounds the look at one other controller.
const lookTimeout = 5 * time.Second

// Other is another member of the cluster, as it shows itself at its peer port.
type Other struct {
	Name  string    `json:"name"`
	Stage pki.Stage `json:"stage"`
	Error string    `json:"error,omitempty"` // why Stage is unknown

	address string // HOST:PORT
}

// authorities are the CAs between which the cluster moves.
type authorities struct {
	own     *x509.Certificate   // nil before there is one
	next    []*x509.Certificate // while that is replaced (package carotation), after the move: the two
	cluster []*x509.Certificate
}

// others looks at all other members at the same time.
func (m *Mover) others(ctx context.Context, server *embed.Etcd, own *x509.Certificate) ([]Other, error) {
	cas := authorities{own: own}
	var err error
	if cas.cluster, err = pki.ClusterCAs(m.layout); err != nil {
		return nil, err
	}
	if m.started == pki.StageOwn {
		if cas.next, err = pki.EtcdCAs(m.layout); err != nil {
			return nil, err
		}
	}
	files := m.started.Files(m.layout) // the member itself uses them
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var all []Other
	for _, e := range server.Server.Cluster().Members() {
		if e.ID != server.Server.MemberID() {
			all = append(all, Other{Name: nameOf(e), address: peerAddress(e)})
		}
	}
	var wait sync.WaitGroup
	for i := range all {
		wait.Go(func() {
			stage, err := m.look(ctx, all[i].address, pair, cas)
			if all[i].Stage = stage; err != nil {
				all[i].Error = err.Error()
			}
		})
	}
	wait.Wait()
	slices.SortFunc(all, func(a, b Other) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func nameOf(e *membership.Member) string {
	if e.Name == "" {
		return e.ID.String() // it has not started
	}
	return e.Name
}

// peerAddress returns HOST:PORT of a member's peer port; "" without TLS.
func peerAddress(e *membership.Member) string {
	for _, text := range e.PeerURLs {
		if u, err := url.Parse(text); err == nil && u.Scheme == "https" {
			return u.Host
		}
	}
	return ""
}

// look learns in one handshake which CAs a member trusts, because a server names them when
// it asks for a certificate (RFC 8446, 4.2.4), and which certificate it shows.
func (m *Mover) look(ctx context.Context, address string, own tls.Certificate, cas authorities) (pki.Stage, error) {
	var trusted [][]byte
	leaf, err := m.handshake(ctx, address, &own, cas, func(subjects [][]byte) { trusted = subjects })
	if leaf == nil {
		return 0, err
	}
	if trusted == nil {
		return 0, errors.New("it does not say which CAs it trusts")
	}
	trusts := func(ca *x509.Certificate) bool {
		return ca != nil && slices.ContainsFunc(trusted, func(s []byte) bool { return bytes.Equal(s, ca.RawSubject) })
	}
	switch {
	case cas.shows(leaf) && !slices.ContainsFunc(cas.cluster, trusts):
		return pki.StageOwn, nil
	case cas.shows(leaf):
		return pki.StageUse, nil
	case trusts(cas.own):
		return pki.StageTrust, nil
	}
	return pki.StageShared, nil
}

// shows reports whether the certificate is of etcd's own CA.
func (a authorities) shows(leaf *x509.Certificate) bool {
	return slices.ContainsFunc(append(slices.Clone(a.next), a.own), func(ca *x509.Certificate) bool {
		return ca != nil && leaf.CheckSignatureFrom(ca) == nil
	})
}

// handshake connects to a member's peer port with a certificate, and returns the member's
// own. It fails if that is not a controller's of one of the CAs, or if the member does not
// accept ours; leaf is not nil in the latter case.
func (m *Mover) handshake(ctx context.Context, address string, own *tls.Certificate, cas authorities, asked func(subjects [][]byte)) (leaf *x509.Certificate, err error) {
	if address == "" {
		return nil, errors.New("its peer port has no TLS")
	}
	names := m.etcd.PeerNames()
	config := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // VerifyConnection verifies against both CAs
		GetClientCertificate: func(in *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if asked != nil {
				asked(in.AcceptableCAs)
			}
			return own, nil
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			shown := s.PeerCertificates[0]
			roots, more := x509.NewCertPool(), x509.NewCertPool()
			for _, ca := range append(slices.Concat(cas.cluster, cas.next), cas.own) {
				if ca != nil {
					roots.AddCert(ca)
				}
			}
			for _, c := range s.PeerCertificates[1:] {
				more.AddCert(c)
			}
			if _, err := shown.Verify(x509.VerifyOptions{Roots: roots, Intermediates: more, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return fmt.Errorf("it shows a certificate of neither CA: %w", err)
			}
			if !names.Match(shown) {
				return fmt.Errorf("it has a certificate for %s, which is no controller's", peers.SubjectOf(shown))
			}
			leaf = shown
			return nil
		},
	}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return leaf, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	// In TLS 1.3 only the first answer tells whether the server has accepted a certificate.
	if _, err = fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", address); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	return leaf, err
}
