package peers

import (
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

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/pki"
)

// AllowedNames returns the names that a port of etcd accepts; none means all.
func AllowedNames(port *transport.TLSInfo) pki.ControllerNames {
	return pki.ControllerNames{CommonNames: port.AllowedCNs, Hosts: port.AllowedHostnames}
}

// shutOutTimeout bounds how long a start waits for the certificates of the other members.
const shutOutTimeout = 2 * time.Second

// RefuseToShutOut fails if another member answers, and one of the two does not accept the
// other's certificate: they would never form a quorum. Members that do not answer are
// skipped.
func RefuseToShutOut(ctx context.Context, cfg *embed.Config) error {
	known, err := types.NewURLsMap(cfg.InitialCluster)
	if err != nil || cfg.PeerTLSInfo.Empty() {
		return nil // etcd reports a better error
	}
	delete(known, cfg.Name)
	ctx, cancel := context.WithTimeout(ctx, shutOutTimeout)
	defer cancel()
	var wait sync.WaitGroup
	found := make(chan error, len(known))
	for name, urls := range known {
		wait.Go(func() {
			for _, u := range urls {
				if why := strangeName(ctx, cfg, u.String()); why != "" {
					found <- fmt.Errorf("%s at %s %s", name, u.Host, why)
					return
				}
			}
		})
	}
	wait.Wait()
	close(found)
	var all []string
	for err := range found {
		all = append(all, err.Error())
	}
	if len(all) == 0 {
		return nil
	}
	slices.Sort(all)
	return advice.With(errors.New(strings.Join(all, "; ")),
		"give every controller an etcd.pem (kubernetes.pem where etcd has no CA of its own) with the same name: kthwd pki controller NAME ADDRESS makes one where the keys of the CAs are; or name all of them on every controller with --etcd-arg=peer-cert-allowed-cn=NAME,NAME")
}

// strangeName describes which of the two, this member or the one at a peer URL, does not
// accept the name in the other's certificate. It returns "" if both accept it, or if that
// cannot be determined.
func strangeName(ctx context.Context, c *embed.Config, peerURL string) string {
	u, err := url.Parse(peerURL)
	if err != nil || u.Scheme != "https" {
		return ""
	}
	cfg, err := c.PeerTLSInfo.ClientConfig()
	if err != nil {
		return ""
	}
	var leaf *x509.Certificate
	cfg.VerifyPeerCertificate = nil // the names are compared below
	cfg.VerifyConnection = func(s tls.ConnectionState) error { leaf = s.PeerCertificates[0]; return nil }
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", u.Host)
	if err == nil {
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline)
		}
		err = probeAcceptance(conn, u.Host)
	}
	names := AllowedNames(&c.PeerTLSInfo)
	switch {
	case leaf != nil && strings.HasPrefix(leaf.Subject.CommonName, "system:"):
		return "" // no controller: another machine uses the address while the member is down
	case leaf != nil && !names.Match(leaf):
		return fmt.Sprintf("has a certificate for %s, and this controller accepts %s", SubjectOf(leaf), names)
	case leaf != nil && isBadCertificate(err):
		own := "its certificate"
		if mine, err := pki.Controllers(c.PeerTLSInfo.CertFile); err == nil {
			own = mine.String()
		}
		return "does not accept this controller, which has " + own
	}
	return ""
}

// probeAcceptance sends a request, because in TLS 1.3 a client learns only from the first
// answer whether the server has accepted its certificate.
func probeAcceptance(conn io.ReadWriter, host string) error {
	if _, err := fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// isBadCertificate tells whether the other side refused our certificate for its name.
// crypto/tls has no exported type for an alert from the other side.
func isBadCertificate(err error) bool {
	return err != nil && strings.Contains(err.Error(), "remote error: tls: bad certificate")
}

// SubjectOf returns the common name of a certificate, quoted for messages.
func SubjectOf(leaf *x509.Certificate) string {
	if cn := leaf.Subject.CommonName; cn != "" {
		return fmt.Sprintf("%.64q", cn)
	}
	return "no common name"
}
