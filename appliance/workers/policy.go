package workers

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"crypto/x509"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// A Request is a request for a certificate of the cluster's CA.
type Request struct {
	User     string // the client's name
	Groups   []string
	Signer   string
	Usages   []string
	Contents *x509.CertificateRequest

	Credential string        // the certificate with which the client asks; empty for none
	Life       time.Duration // that the client asks for; 0 for none
}

// A Controller is a controller of the cluster, as etcd knows it.
type Controller struct{ Name, Address string }

// cluster is what the policy knows of the cluster.
type cluster struct {
	controllers []Controller
	reserved    []string // names and addresses of the API servers
	services    []netip.Prefix
	nodes       []corev1.Node
}

// errNotYet marks what is expected to become right by itself.
var errNotYet = errors.New("not yet")

// CheckName accepts a name that Kubernetes accepts for a node.
func CheckName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return fmt.Errorf("%q is no name of a node: want lower-case letters, digits, dashes and dots", name)
	}
	return nil
}

// ofNode returns the name of the node in a request, whose subject must be exactly a node's.
func ofNode(r *x509.CertificateRequest) (string, error) {
	name, isNode := strings.CutPrefix(r.Subject.CommonName, nodeUser)
	switch {
	case !isNode:
		return "", fmt.Errorf("the common name %q is not %sNAME", r.Subject.CommonName, nodeUser)
	case !slices.Equal(r.Subject.Organization, []string{nodeGroup}):
		return "", fmt.Errorf("the organization %q is not %s", r.Subject.Organization, nodeGroup)
	case len(r.EmailAddresses) > 0 || len(r.URIs) > 0:
		return "", errors.New("a node's certificate has no mail address and no URI")
	}
	return name, CheckName(name)
}

// checkUsages requires one usage of the key besides those of every TLS certificate.
func checkUsages(usages []string, want certificatesv1.KeyUsage) error {
	all := []string{string(certificatesv1.UsageDigitalSignature), string(certificatesv1.UsageKeyEncipherment), string(want)}
	for _, u := range usages {
		if !slices.Contains(all, u) {
			return fmt.Errorf("the usage %q is not that of such a certificate", u)
		}
	}
	if !slices.Contains(usages, string(want)) {
		return fmt.Errorf("the usage %q is missing", want)
	}
	return nil
}

// checkFree refuses a name that is somebody else's.
func (c cluster) checkFree(name string) error {
	for _, other := range c.controllers {
		if strings.EqualFold(other.Name, name) {
			return fmt.Errorf("%s is the name of a controller", name)
		}
	}
	if slices.ContainsFunc(c.reserved, func(r string) bool { return same(r, name) }) {
		return fmt.Errorf("%s is a name of the API server", name)
	}
	return nil
}

// checkFirst decides about the first certificate of a node.
func (c cluster) checkFirst(r Request, l Limits) (name string, err error) {
	if r.Signer != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return "", fmt.Errorf("a token is good for certificates of %s, not of %s", certificatesv1.KubeAPIServerClientKubeletSignerName, r.Signer)
	}
	if name, err = ofNode(r.Contents); err != nil {
		return name, err
	}
	if err := checkUsages(r.Usages, certificatesv1.UsageClientAuth); err != nil {
		return name, err
	}
	if len(r.Contents.DNSNames) > 0 || len(r.Contents.IPAddresses) > 0 {
		return name, errors.New("a client certificate has no addresses")
	}
	if err := c.checkFree(name); err != nil {
		return name, err
	}
	if l.Name != "" && l.Name != name {
		return name, fmt.Errorf("the token is for the node %s, not for %s", l.Name, name)
	}
	if slices.ContainsFunc(c.nodes, func(n corev1.Node) bool { return n.Name == name }) {
		return name, fmt.Errorf("there is a node %s already; if it is to join anew: kthwd node remove %[1]s", name)
	}
	return name, nil
}

// checkServing decides about a serving certificate: a node speaks for its own name and
// addresses, and for nobody else's. A node writes its own addresses, so that they prove
// little; ranges, the addresses of the others and of the controllers bound them.
func (c cluster) checkServing(r Request, ranges []netip.Prefix) (name string, err error) {
	if name, err = ofNode(r.Contents); err != nil {
		return name, err
	}
	if r.User != nodeUser+name || !slices.Contains(r.Groups, nodeGroup) {
		return name, fmt.Errorf("%s asks for a certificate of the node %s", r.User, name)
	}
	if err := checkUsages(r.Usages, certificatesv1.UsageServerAuth); err != nil {
		return name, err
	}
	if len(r.Contents.DNSNames)+len(r.Contents.IPAddresses) == 0 {
		return name, errors.New("it names no address")
	}
	if err := c.checkFree(name); err != nil {
		return name, err
	}
	at := slices.IndexFunc(c.nodes, func(n corev1.Node) bool { return n.Name == name })
	if at < 0 {
		return name, fmt.Errorf("%w: there is no node %s", errNotYet, name)
	}
	for _, dns := range r.Contents.DNSNames {
		if err := c.checkDNS(c.nodes[at], dns); err != nil {
			return name, err
		}
	}
	for _, ip := range r.Contents.IPAddresses {
		if err := c.checkIP(c.nodes[at], ip, ranges); err != nil {
			return name, err
		}
	}
	return name, nil
}

// checkDNS accepts a name that is the node's own.
func (c cluster) checkDNS(node corev1.Node, dns string) error {
	dns = strings.ToLower(strings.TrimSuffix(dns, ".")) // a client that verifies a certificate compares names so
	for _, other := range c.controllers {
		if same(other.Address, dns) {
			return fmt.Errorf("%s is the address of the controller %s", dns, other.Name)
		}
	}
	switch {
	case strings.Contains(dns, "*"):
		return fmt.Errorf("%s stands for the names of others, too", dns)
	case c.checkFree(dns) != nil:
		return c.checkFree(dns)
	case strings.HasSuffix("."+dns, ".svc") || strings.Contains("."+dns+".", ".svc."):
		return fmt.Errorf("%s is a name of a service", dns)
	case c.another(node.Name, dns) != "":
		return fmt.Errorf("%s is the node %s", dns, c.another(node.Name, dns))
	case dns != node.Name && !hasAddress(node, dns):
		return fmt.Errorf("%w: %s is neither the name nor an address of the node %s", errNotYet, dns, node.Name)
	}
	return nil
}

// checkIP accepts an address that is the node's own.
func (c cluster) checkIP(node corev1.Node, ip net.IP, ranges []netip.Prefix) error {
	addr, ok := netip.AddrFromSlice(ip)
	if addr = addr.Unmap(); !ok || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() {
		return fmt.Errorf("%s is no address by which others reach the node", ip)
	}
	within := func(all []netip.Prefix) bool {
		return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(addr) })
	}
	for _, other := range c.controllers {
		if same(other.Address, addr.String()) {
			return fmt.Errorf("%s is the address of the controller %s", addr, other.Name)
		}
	}
	switch {
	case slices.ContainsFunc(c.reserved, func(r string) bool { return same(r, addr.String()) }):
		return fmt.Errorf("%s is an address of the API server", addr)
	case within(c.services):
		return fmt.Errorf("%s is an address of a service", addr)
	case c.another(node.Name, addr.String()) != "":
		return fmt.Errorf("%s is an address of the node %s", addr, c.another(node.Name, addr.String()))
	case len(ranges) > 0 && !within(ranges):
		return fmt.Errorf("%s is not in %s, which its token was for", addr, strings.Join(texts(ranges), ", "))
	case !hasAddress(node, addr.String()):
		return fmt.Errorf("%w: %s is no address of the node %s", errNotYet, addr, node.Name)
	}
	return nil
}

// another returns the name of a node other than the given one that has the name or address.
func (c cluster) another(name, address string) string {
	for _, n := range c.nodes {
		if n.Name != name && (n.Name == address || hasAddress(n, address)) {
			return n.Name
		}
	}
	return ""
}

func hasAddress(n corev1.Node, address string) bool {
	return slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return same(a.Address, address) })
}

// same compares two names or addresses, whichever way an address is written.
func same(a, b string) bool {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX == nil && errY == nil {
		return x.Unmap() == y.Unmap()
	}
	return strings.EqualFold(a, b)
}
