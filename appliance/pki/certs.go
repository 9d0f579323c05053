package pki

import (
	"crypto/x509"
	"slices"
	"time"
)

const (
	// lifetime is what kelseyhightower/kubernetes-the-hard-way gives CA and
	// leaves alike (openssl's -days 3653 over ca.conf). kthwd does not renew a
	// certificate by itself yet, so a shorter one would only be an outage with
	// a date.
	lifetime = 3653 * 24 * time.Hour

	// backdate lets machines whose clocks run a little behind use a certificate
	// at once.
	backdate = 5 * time.Minute

	// expiresSoon is when the warnings begin.
	expiresSoon = 30 * 24 * time.Hour
)

// A row is one certificate with its key.
type row struct {
	name     string // of its files
	issuer   string // name of the CA that signs it; "" is a CA, signed by itself
	cn, org  string
	uses     []x509.ExtKeyUsage
	identity identity

	names func(Spec) []string // its SANs
	must  func(Spec) []string // of these, the ones an existing certificate must carry

	configOnly bool // needed only to make a kubeconfig, which carries a copy
	publicOnly bool // used for its public key alone, which may stand there bare

	given bool   // read and judged, never made
	dir   string // where its files are; "" is the data directory
}

// An identity says what it means when an existing certificate has another
// subject than its row.
type identity int

const (
	free     identity = iota // nothing
	expected                 // a warning: the common name is in somebody's role binding
	required                 // a Misfit: it would be nobody
)

var (
	client          = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	serverAndClient = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
)

// controllerCN is the common name of every controller's kubernetes.pem, the guide's
// included. etcd lets it in, so no other certificate may have it: see ControllerNames.
const controllerCN = "kubernetes"

// certificates is all there is, in the order of the tutorial; a CA comes before
// what it signs.
var certificates = []row{
	{name: nameCA, cn: "Kubernetes", org: "Kubernetes"},
	// etcd's peers and the API server towards etcd and kubelets are clients
	// with this one, too. The user "kubernetes" is who part 3 binds
	// system:kube-apiserver-to-kubelet to.
	{name: NameKubernetes, issuer: nameCA, cn: controllerCN, org: "Kubernetes", uses: serverAndClient,
		identity: expected, names: serverNames, must: func(s Spec) []string { return s.Local }},
	{name: NameServiceAccount, issuer: nameCA, cn: "service-accounts", publicOnly: true},
	{name: NameAdmin, issuer: nameCA, cn: "admin", org: "system:masters", uses: client, configOnly: true},
	{name: NameControllerManager, issuer: nameCA, cn: "system:kube-controller-manager",
		org: "system:kube-controller-manager", uses: client, identity: required, configOnly: true},
	{name: NameScheduler, issuer: nameCA, cn: "system:kube-scheduler",
		org: "system:kube-scheduler", uses: client, identity: required, configOnly: true},
	{name: NameHealth, issuer: nameCA, cn: "kthwd-health", uses: client},
	// The tutorial forgot these two. The CA must be another one: whoever it
	// signed may say in a header which user a request comes from.
	{name: NameFrontProxyCA, cn: "front-proxy-ca"},
	{name: NameFrontProxyClient, issuer: NameFrontProxyCA, cn: "front-proxy-client", uses: client,
		identity: required},
}

func (r row) isCA() bool { return r.issuer == "" }

// in is the layout that the row's files have their paths from.
func (r row) in(l Layout) Layout {
	if r.dir != "" {
		return Layout{Dir: r.dir}
	}
	return l
}

// A config is one kubeconfig.
type config struct {
	name   string // of its file
	cert   string // name of the certificate it carries
	server func(Spec) string
	local  bool // used by what runs in kthwd: a loopback server must be ours
	dir    string
}

// kubeconfigs is all of them. One whose server is empty is not wanted.
var kubeconfigs = []config{
	{name: NameAdmin, cert: NameAdmin, server: localServer},
	{name: NameControllerManager, cert: NameControllerManager, server: localServer, local: true},
	{name: NameScheduler, cert: NameScheduler, server: localServer, local: true},
	{name: NameAdminRemote, cert: NameAdmin, server: func(s Spec) string { return s.RemoteServer }},
}

func localServer(s Spec) string { return s.Server }

func (k config) path(l Layout) string {
	return row{dir: k.dir}.in(l).Kubeconfig(k.name)
}

// clusterNames are the names of the API server's own service. The fifth of the
// tutorials' list, kubernetes.default.svc.cluster, resolves nowhere; it is
// issued for likeness but not missed.
var clusterNames = []string{
	"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
}

// serverNames is what kubernetes.pem is issued for, without doubles.
func serverNames(s Spec) []string {
	all := slices.Concat(s.Addresses, s.Local, []string{"127.0.0.1", "::1"})
	if s.ServiceIP != nil {
		all = append(all, s.ServiceIP.String())
	}
	all = append(append(all, "localhost"), clusterNames...)
	all = append(all, "kubernetes.default.svc.cluster")
	return unique(all)
}

// wishedNames is what an existing kubernetes.pem ought to carry, by the reason.
func wishedNames(s Spec) (addresses, inCluster []string) {
	inCluster = slices.Clone(clusterNames)
	if s.ServiceIP != nil {
		inCluster = append(inCluster, s.ServiceIP.String())
	}
	return unique(s.Addresses), inCluster
}

func unique(all []string) []string {
	var kept []string
	for _, a := range all {
		if !slices.Contains(kept, a) {
			kept = append(kept, a)
		}
	}
	return kept
}
