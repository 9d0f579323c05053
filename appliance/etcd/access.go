package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdgateway"
	"kthwd/appliance/etcdline"
	"kthwd/appliance/pki"
)

// AdmitControllers makes etcd's two ports refuse all certificates except a controller's.
// The cluster's CA also signs workers' certificates and, through the API, any user's,
// and access to etcd means root on the whole cluster. With a CA of etcd's own the names
// are the second line of defence. So are they with a CA of the user's: nothing here tells what
// else that has signed, or whether it is a cluster's CA under another certificate. A port stays
// unchanged if the user has set its names. Call it before Run.
func (e *Member) AdmitControllers() error {
	ports := []*transport.TLSInfo{&e.cfg.ClientTLSInfo, &e.cfg.PeerTLSInfo}
	for _, port := range ports {
		if port.Empty() || !allowedNames(port).Empty() {
			continue
		}
		names, err := pki.Controllers(port.CertFile)
		if err != nil {
			return err
		}
		port.AllowedCNs, port.AllowedHostnames = names.CommonNames, names.Hosts
		e.log.Debug("etcd accepts controllers only", "names", names, "certificate", port.CertFile)
	}
	e.replaceGateway()
	return nil
}

// allowedNames returns the names that a port of etcd accepts; none means all.
func allowedNames(port *transport.TLSInfo) pki.ControllerNames {
	return pki.ControllerNames{CommonNames: port.AllowedCNs, Hosts: port.AllowedHostnames}
}

// PeerNames returns the names that the peer port accepts; none means all.
func (e *Member) PeerNames() pki.ControllerNames { return allowedNames(&e.cfg.PeerTLSInfo) }

// ControllerNames returns the names that the client port or the peer port accepts.
func (e *Member) ControllerNames() pki.ControllerNames {
	return allowedNames(&e.cfg.ClientTLSInfo).Join(allowedNames(&e.cfg.PeerTLSInfo))
}

// replaceGateway serves etcd's HTTP API (/v3/) through the unix socket. etcd's own
// gateway fails once only certain names are allowed, see etcdgateway.
func (e *Member) replaceGateway() {
	socket := etcdline.Socket(e.cfg)
	if !e.cfg.EnableGRPCGateway || socket == "" {
		return
	}
	e.cfg.EnableGRPCGateway = false
	e.gateway = etcdgateway.New(socket)
	e.Handle("/v3/", e.gateway)
}

// Handle adds a handler to the client port and the unix socket. Call it before Run.
func (e *Member) Handle(path string, h http.Handler) {
	if e.cfg.UserHandlers == nil {
		e.cfg.UserHandlers = map[string]http.Handler{}
	}
	e.cfg.UserHandlers[path] = h
}

// shutOutTimeout bounds how long a start waits for the certificates of the other members.
const shutOutTimeout = 2 * time.Second

// refuseToShutOut fails if another member answers, and one of the two does not accept the
// other's certificate: they would never form a quorum. Members that do not answer are
// skipped.
func (e *Member) refuseToShutOut(ctx context.Context) error {
	known, err := types.NewURLsMap(e.cfg.InitialCluster)
	if err != nil || e.cfg.PeerTLSInfo.Empty() {
		return nil // etcd reports a better error
	}
	delete(known, e.cfg.Name)
	ctx, cancel := context.WithTimeout(ctx, shutOutTimeout)
	defer cancel()
	var wait sync.WaitGroup
	found := make(chan error, len(known))
	for name, urls := range known {
		wait.Go(func() {
			for _, u := range urls {
				if why := e.strangeName(ctx, u.String()); why != "" {
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
func (e *Member) strangeName(ctx context.Context, peerURL string) string {
	u, err := url.Parse(peerURL)
	if err != nil || u.Scheme != "https" {
		return ""
	}
	cfg, err := e.cfg.PeerTLSInfo.ClientConfig()
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
	names := allowedNames(&e.cfg.PeerTLSInfo)
	switch {
	case leaf != nil && strings.HasPrefix(leaf.Subject.CommonName, "system:"):
		return "" // no controller: another machine uses the address while the member is down
	case leaf != nil && !names.Match(leaf):
		return fmt.Sprintf("has a certificate for %s, and this controller accepts %s", SubjectOf(leaf), names)
	case leaf != nil && isBadCertificate(err):
		own := "its certificate"
		if mine, err := pki.Controllers(e.cfg.PeerTLSInfo.CertFile); err == nil {
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

// LeaderOf returns the current leader in this member's view, or 0. A leader that is not a
// member does not count, because any client of the peer port can claim to lead.
func LeaderOf(server *embed.Etcd) types.ID {
	leader := server.Server.Leader()
	if leader != 0 && server.Server.Cluster().Member(leader) == nil {
		return 0
	}
	return leader
}
