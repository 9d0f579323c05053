package pki

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
)

// IssueNode makes what the kubelet of the node called name needs: NAME.pem,
// which it serves with and is a client with, NAME-key.pem and NAME.kubeconfig
// for server, signed by the CA of l. Files go into dir, which may be l.Dir, and
// the ones written are returned. addresses are the node's, beside its name.
//
// As in Ensure, what is there is kept when it fits and refused when it does not.
func IssueNode(l Layout, dir, name string, addresses []string, server string) ([]string, error) {
	if err := checkNodeName(name); err != nil {
		return nil, err
	}
	if dir == "" {
		return nil, errors.New("directory for the node's files: not named")
	}
	spec := Spec{Addresses: addresses, Server: server}
	survey := func() *survey { v := newSurvey(l, spec); v.forNode(dir, name); return v }

	if v := survey(); !isDir(dir) { // make no directory for nothing
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

// lockBoth keeps the CA from being made while it is read, and locks dir, which
// may be the same directory by another path.
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

// forNode narrows the survey to the CA, which must be there, and the node.
func (v *survey) forNode(dir, name string) {
	ca := v.row(nameCA)
	ca.given = true
	names := func(s Spec) []string { return unique(slices.Concat([]string{name}, s.Addresses)) }
	v.rows = []row{ca, {name: name, issuer: nameCA, cn: "system:node:" + name, org: "system:nodes",
		uses: serverAndClient, identity: required, names: names, must: names, dir: dir}}
	v.configs = []config{{name: name, cert: name, server: localServer, dir: dir}}
	v.documents = nil
}

// checkNodeName wants what Kubernetes accepts as a node's name, and no file
// name that is taken.
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
