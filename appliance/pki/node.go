package pki

import (
	"errors"
	"fmt"
	"os"
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
	if dir == "" {
		return nil, errors.New("directory for the node's files: not named")
	}
	spec := Spec{Addresses: addresses, Server: server}
	survey := func() *survey { v := newSurvey(l, spec); v.forNode(dir, name); return v }

	if v := survey(); !isDir(dir) { // create no directory for an invalid request
		if v.run(); len(v.problems) > 0 {
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
	ca := v.row(nameCA)
	ca.given = true
	names := func(s Spec) []string { return unique(slices.Concat([]string{name}, s.Addresses)) }
	v.rows = []row{ca, {name: name, issuer: nameCA, cn: "system:node:" + name, org: "system:nodes",
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
