// Package pki makes, keeps and checks the files that part 2 of the tutorial
// series makes by hand: certificates, keys, kubeconfigs, the encryption
// configuration and the audit policy. They have the tutorial's names and lie flat
// in the data directory.
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
// Ensure reads every file first. If any file does not fit, it reports every misfit
// and writes nothing. Otherwise it makes the missing files and leaves existing ones
// unchanged, to the byte. Check reads and reports, but writes nothing.
//
// These rules make an interrupted Ensure safe. A change must keep them:
//
//   - a new file is written whole and synced under a hidden name (.NAME.new), then
//     linked to its own name; link(2) never replaces a file;
//   - keys are linked before certificates, so that a crash leaves keys without
//     certificates, for which the next Ensure issues certificates;
//   - a CA certificate that a crash left under its hidden name is used. A CA key
//     that has lost its certificate in any other way is refused: a second CA
//     certificate would not match what the first one signed;
//   - a lock on the directory itself makes concurrent Ensures wait for each other.
//
// Where etcd has data, a missing secret that they depend on is a misfit, too: Ensure
// makes a new one only if Spec.NewSecrets names it.
//
// Several controllers must share these files, above all the CA, the service account
// key and the encryption key. EnsureCluster makes a directory for each machine. An
// Ensure on each machine would make a separate cluster on each.
//
// Nothing replaces a file but a call that says so: Renew and Import put another certificate
// for the same key and at least the same names in the place of one, and keep the old file
// below Layout.Kept. Renewals tells which are due.
//
// The package does not rotate or revoke anything, creates neither the etcd
// nor the run directory, does not translate encryption configurations of old
// releases, and uses nothing of Kubernetes but these formats.
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

// Spec is what the files must fit. Ensure makes new files for it and checks existing
// ones against it.
type Spec struct {
	// Addresses are the IP addresses and DNS names of every controller and
	// load balancer. They go into kubernetes.pem. An existing kubernetes.pem that
	// lacks one causes a warning.
	Addresses []string

	// Local are the addresses of this machine that kubernetes.pem must contain,
	// such as the advertise address and 127.0.0.1. Lacking one is a Misfit.
	Local []string

	// ServiceIP is the first address of the service range, at which pods reach
	// the API server. Nil leaves it out.
	ServiceIP net.IP

	// Server is the URL of this machine's API server, which goes into the
	// kubeconfigs of admin, kube-controller-manager and kube-scheduler. It is
	// required.
	Server string

	// RemoteServer is the URL by which other machines reach the cluster,
	// usually the load balancer's. When it is set, admin-remote.kubeconfig is
	// kept beside admin.kubeconfig, for the same user on another machine.
	RemoteServer string

	// ClusterName names the cluster in new kubeconfigs; "" means "kubernetes".
	ClusterName string

	// NewSecrets names the secrets that kthwd makes although etcd has data: some
	// of SecretNames. Any other secret that is missing beside data is a Misfit.
	NewSecrets []string

	// Unused are files that no program uses, because the user's flags name others.
	// One that is missing is made, whatever the data.
	Unused []string

	// RenewExpired makes Ensure renew an expired certificate, where the key of its CA is
	// and the clock can be believed. Without it an expired certificate is a Misfit.
	RenewExpired bool

	// LeafLife is how long a certificate that kthwd renews is valid; 0 means a year.
	LeafLife time.Duration

	// Now returns the time; nil means time.Now.
	Now func() time.Time
}

// Report is the result of Ensure or Check. Files are full paths, in the order of the
// tutorial.
type Report struct {
	Created  []string // files that this Ensure made
	Kept     []string // files that existed and are unchanged
	Missing  []string // from Check: files that Ensure would make
	Renewed  []string // files with an expired certificate that this Ensure renewed
	Warnings []string // one line each, beginning with the file
}

// Misfit is a file that kthwd refuses to use, and why. It contains no secret.
type Misfit struct {
	File    string // the full path of the file in question
	Other   string // the file, or files separated by commas, that it does not fit; may be empty
	Problem string // what is wrong; Other ends the sentence
	Hint    string // what to do about it; may be empty
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
	errs = append(errs, s.checkNewSecretNames(), checkServer(s.Server))
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
