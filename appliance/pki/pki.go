// Package pki makes, keeps and judges the files that part 2 of the tutorial
// series made by hand: certificates, keys, kubeconfigs, the encryption
// configuration and the audit policy, under the tutorial's names, flat below
// the data directory.
//
// Usage:
//
//	l := pki.Layout{Dir: "/var/lib/kubernetes"}
//	report, err := pki.Ensure(l, pki.Spec{
//		Addresses: []string{"10.0.0.11", "10.0.0.12", "10.0.0.20"},
//		Local:     []string{"10.0.0.11", "127.0.0.1"},
//		ServiceIP: net.ParseIP("10.32.0.1"),
//		Server:    "https://127.0.0.1:6443",
//	})
//
// Ensure reads everything first. When a single file does not fit, it reports
// all that do not and writes nothing; otherwise it makes what is missing and
// leaves what is there as it is, to the byte. Check is its reading half.
//
// What makes an Ensure safe to interrupt, and what a change here must keep:
//
//   - every new file is first written whole and synced under a hidden name
//     (.NAME.new) and then linked to its own; link(2) never replaces a file;
//   - keys are linked before certificates, so that a crash leaves keys without
//     certificates, for which the next Ensure issues certificates;
//   - a CA certificate cut off that way is taken from its hidden name. A CA key
//     that lost its certificate otherwise is refused: a second certificate
//     beside what the first one signed would fit nothing;
//   - a lock on the directory itself makes two Ensures wait for each other.
//
// Several controllers must share these files, the CA, the service account key
// and the encryption key above all. EnsureCluster makes a directory for each
// machine; an Ensure on each would make as many clusters.
//
// The package does not renew, rotate or revoke, makes neither the etcd nor the
// run directory, does not translate encryption configurations of old releases
// and knows nothing of Kubernetes but these formats.
package pki

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Spec is what the files must fit: those that Ensure makes are made for it,
// those it finds are checked against it.
type Spec struct {
	// Addresses are the IP addresses and DNS names of every controller and
	// load balancer. They go into kubernetes.pem; a kubernetes.pem that was
	// already there and lacks one is worth a warning.
	Addresses []string

	// Local are the addresses of this machine that kubernetes.pem must carry,
	// such as the advertise address and 127.0.0.1; the lack of one is a Misfit.
	Local []string

	// ServiceIP is the first address of the service range, the one that pods
	// reach the API server by. Nil leaves it out.
	ServiceIP net.IP

	// Server is the URL of this machine's API server, which goes into the
	// kubeconfigs of admin, kube-controller-manager and kube-scheduler. It is
	// required.
	Server string

	// RemoteServer is the URL by which other machines reach the cluster,
	// usually the load balancer's. When it is set, admin-remote.kubeconfig is
	// kept beside admin.kubeconfig: the same user, to be carried away.
	RemoteServer string

	// ClusterName names the cluster in new kubeconfigs; "" is "kubernetes".
	ClusterName string

	// Now tells the time; nil is time.Now.
	Now func() time.Time
}

// Report is what Ensure did or what Check saw. All files are full paths, in the
// order of the tutorial.
type Report struct {
	Created  []string // by Ensure, in this call
	Kept     []string // were there and are unchanged
	Missing  []string // by Check: what Ensure would create
	Warnings []string // one line each, beginning with the file
}

// Misfit is a file that kthwd will not work with, and why. It carries no secret.
type Misfit struct {
	File    string // the full path of the file in question
	Other   string // the file (or files, separated by commas) it does not fit; may be empty
	Problem string // what is wrong, worded so that Other ends the sentence
	Hint    string // what to do about it, for the line after the error; may be empty
}

func (m *Misfit) Error() string {
	text := m.File + ": " + m.Problem
	if m.Other != "" {
		text += " " + m.Other
	}
	return printable(text)
}

func (s Spec) clusterName() string {
	if s.ClusterName == "" {
		return "kubernetes"
	}
	return s.ClusterName
}

func (s Spec) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// validate returns every mistake in the Spec itself.
func (s Spec) validate() []error {
	var errs []error
	for _, a := range slices.Concat(s.Addresses, s.Local) {
		errs = append(errs, checkAddress(a))
	}
	errs = append(errs, checkServer(s.Server))
	if s.RemoteServer != "" {
		errs = append(errs, checkServer(s.RemoteServer))
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

var dnsName = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func checkAddress(a string) error {
	if net.ParseIP(a) != nil || len(a) <= 253 && dnsName.MatchString(strings.ToLower(a)) {
		return nil
	}
	return fmt.Errorf("address %q: want an IP address or a DNS name, without scheme and port", a)
}

func checkServer(server string) error {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return fmt.Errorf("server %q: %w", server, errServer)
	}
	return nil
}

var errServer = errors.New("want a URL like https://127.0.0.1:6443")
