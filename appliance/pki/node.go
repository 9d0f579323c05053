package pki

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// IssueNode makes the files of the kubelet on the node called name, signed by the CA
// of l: NAME.pem, its certificate as server and as client, NAME-key.pem, and
// NAME.kubeconfig for server. It writes them to dir, which may be l.Dir, and returns
// those that it wrote. addresses are the node's addresses in addition to its name.
//
// As in Ensure, an existing file is kept if it fits and refused if it does not.
func IssueNode(l Layout, dir, name string, addresses []string, server string) ([]string, error) {
	if err := checkNodeName(name); err != nil {
		return nil, err
	}
	if err := checkNodeIdentity(l, append([]string{name}, addresses...)); err != nil {
		return nil, err
	}
	if dir == "" {
		return nil, errors.New("directory for the node's files: not named")
	}
	spec := Spec{Addresses: addresses, Server: server}
	survey := func() *survey { v := newSurvey(l, spec); v.forNode(dir, name); return v }

	if v := survey(); !isDir(dir) { // create no directory for an invalid request
		// As in Ensure: another process may make the directory meanwhile.
		if v.run(); len(v.problems) > 0 && !isDir(dir) {
			return nil, errors.Join(v.problems...)
		}
		if err := makeDir(dir); err != nil {
			return nil, err
		}
	}
	release, err := lockBoth(l.Dir, dir)
	if err != nil {
		return nil, err
	}
	defer release()
	report, err := survey().ensure(dir)
	return report.Created, err
}

// lockBoth locks ca, so that no Ensure makes the CA while it is read, and dir, which
// may be the same directory under another path.
func lockBoth(ca, dir string) (release func(), err error) {
	a, err := os.Stat(ca)
	if err != nil {
		return nil, err
	}
	b, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	first, err := lock(ca, syscall.LOCK_EX)
	if err != nil || os.SameFile(a, b) {
		return func() { first.Close() }, err
	}
	second, err := lock(dir, syscall.LOCK_EX)
	if err != nil {
		first.Close()
		return nil, err
	}
	return func() { second.Close(); first.Close() }, nil
}

// forNode narrows the survey to the CA, which must exist, and the node.
func (v *survey) forNode(dir, name string) {
	ca := v.row(NameCA)
	ca.given = true
	names := func(s Spec) []string { return unique(slices.Concat([]string{name}, s.Addresses)) }
	v.rows = []row{ca, {name: name, issuer: NameCA, cn: "system:node:" + name, org: "system:nodes",
		uses: serverAndClient, identity: required, names: names, must: names, dir: dir}}
	v.configs = []config{{name: name, cert: name, server: localServer, dir: dir}}
	v.documents = nil
}

// checkNodeName accepts a name that Kubernetes accepts for a node, unless its files
// would have the names of kthwd's.
func checkNodeName(name string) error {
	if len(name) > 253 || name != strings.ToLower(name) || strings.HasPrefix(name, "*") || !dnsName.MatchString(name) {
		return fmt.Errorf("node name %q: want a lowercase DNS name", name)
	}
	taken := slices.ContainsFunc(certificates, func(r row) bool { return r.name == name || r.name+"-key" == name })
	if taken || name == NameAdminRemote || strings.HasSuffix(name, "-key") {
		return fmt.Errorf("node name %q: its files would be taken for others of kthwd", name)
	}
	return nil
}

// numeric is a name that looks like an IPv4 address; net.ParseIP decides whether it is one.
var numeric = regexp.MustCompile(`^[0-9.]+$`)

// checkNodeIdentity refuses names under which a node could serve as something else:
// the API server's, this machine's own and wildcards. The address of a controller is
// allowed, for a kubelet may run beside one.
func checkNodeIdentity(l Layout, names []string) error {
	taken := append([]string{"localhost", "kube-apiserver", "kubernetes.default.svc.cluster"}, clusterNames...)
	if leaf, err := leafOf(l.Cert(NameKubernetes)); err == nil { // the directory of a CA alone has none
		taken = append(taken, leaf.DNSNames...)
	}
	var errs []error
	for _, name := range names {
		ip := net.ParseIP(name)
		switch lower := strings.ToLower(name); {
		case ip != nil && (ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast()):
			errs = append(errs, fmt.Errorf("address %q: want one by which other machines reach the node", name))
		case ip == nil && numeric.MatchString(name):
			errs = append(errs, fmt.Errorf("address %q: want an IP address or a DNS name", name))
		case strings.HasPrefix(lower, "*"):
			errs = append(errs, fmt.Errorf("address %q: a wildcard would be the certificate of other machines, too", name))
		case slices.ContainsFunc(taken, func(t string) bool { return strings.EqualFold(t, name) }):
			errs = append(errs, fmt.Errorf("address %q: is a name of the API server: a node with it could take its place", name))
		}
	}
	return errors.Join(errs...)
}
