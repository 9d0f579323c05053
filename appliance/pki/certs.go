package pki

import (
	"crypto/x509"
	"slices"
	"time"
)

const (
	// lifetime is that of CA and leaves in kelseyhightower/kubernetes-the-hard-way
	// (openssl's -days 3653 over ca.conf). A leaf has it where nothing can renew it: a
	// shorter lifetime would only schedule an outage.
	lifetime = 3653 * 24 * time.Hour

	// leafLife is that of a leaf whose signer's key is in the same directory, so that kthwd
	// renews it: see Renew.
	leafLife = 365 * 24 * time.Hour

	// adminLife is that of admin.kubeconfig, of which people have copies. Nothing that
	// runs uses it, so its end is no outage.
	adminLife = 365 * 24 * time.Hour

	// backdate lets machines whose clocks are slightly behind use a certificate at
	// once.
	backdate = 5 * time.Minute

	// expiresSoon is the remaining lifetime at which warnings begin.
	expiresSoon = 30 * 24 * time.Hour
)

// A row is one certificate with its key.
type row struct {
	name     string // base name of its files
	issuer   string // name of the CA that signs it; "" means a self-signed CA
	cn, org  string
	uses     []x509.ExtKeyUsage
	identity identity

	names func(Spec) []string // its SANs
	must  func(Spec) []string // the SANs that an existing certificate must contain

	configOnly bool // needed only to make a kubeconfig, which contains a copy
	publicOnly bool // only its public key is used, which may stand in place of the certificate

	life    time.Duration // how long a new one is valid; 0 means lifetime
	renewed bool          // kthwd renews it by itself, where the key of its CA is

	given bool   // read and checked, never made
	dir   string // directory of its files; "" means the data directory
}

// An identity is the consequence of an existing certificate whose subject differs
// from its row's.
type identity int

const (
	free     identity = iota // none
	expected                 // a warning: a role binding names the common name
	required                 // a Misfit: the user would have no rights
)

var (
	client          = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	serverAndClient = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
)

// AdminsGroup is the group of new admin.kubeconfigs. The API server binds it to cluster-admin at
// each start, so that a lost file can lose its rights: see docs/security.md.
const AdminsGroup = "kthwd:cluster-admins"

// controllerCN is the common name of every controller's kubernetes.pem, the guide's
// included, and of its etcd.pem. etcd accepts it, so no other certificate may have it: see ControllerNames.
const controllerCN = "kubernetes"

// certificates lists every certificate in the order of the tutorial. A CA precedes
// the certificates that it signs.
var certificates = []row{
	{name: NameCA, cn: "Kubernetes", org: "Kubernetes"},
	// The API server as a client of kubelets also uses this certificate, and etcd where it
	// has no CA of its own. Part 3 binds system:kube-apiserver-to-kubelet to the user
	// "kubernetes".
	{name: NameKubernetes, issuer: NameCA, cn: controllerCN, org: "Kubernetes", uses: serverAndClient,
		identity: expected, names: serverNames, must: func(s Spec) []string { return s.Local }, renewed: true},
	{name: NameServiceAccount, issuer: NameCA, cn: "service-accounts", publicOnly: true},
	{name: NameAdmin, issuer: NameCA, cn: "admin", org: AdminsGroup, uses: client, configOnly: true, life: adminLife, renewed: true},
	{name: NameSuperAdmin, issuer: NameCA, cn: "super-admin", org: "system:masters", uses: client, configOnly: true},
	{name: NameControllerManager, issuer: NameCA, cn: "system:kube-controller-manager",
		org: "system:kube-controller-manager", uses: client, identity: required, configOnly: true, renewed: true},
	{name: NameScheduler, issuer: NameCA, cn: "system:kube-scheduler",
		org: "system:kube-scheduler", uses: client, identity: required, configOnly: true, renewed: true},
	{name: NameHealth, issuer: NameCA, cn: "kthwd-health", uses: client, renewed: true},
	// The tutorial lacks these two. This CA must be separate: a client that it has
	// signed may name the user of a request in a header.
	{name: NameFrontProxyCA, cn: "front-proxy-ca"},
	{name: NameFrontProxyClient, issuer: NameFrontProxyCA, cn: "front-proxy-client", uses: client,
		identity: required, renewed: true},
	// Nor has it a CA of etcd's own: whatever the cluster's CA signs is a client's
	// certificate of the API, and no client of etcd. See StageOf.
	{name: NameEtcdCA, cn: "etcd-ca"},
	{name: NameEtcd, issuer: NameEtcdCA, cn: controllerCN, org: "Kubernetes", uses: serverAndClient,
		names: serverNames, must: func(s Spec) []string { return s.Local }, renewed: true},
}

func (r row) isCA() bool { return r.issuer == "" }

// signsControllers reports whether the CA signs certificates of controllers, so that its
// key is given to a controller only on demand.
func (r row) signsControllers() bool { return r.name == NameCA || r.name == NameEtcdCA }

// ownEach reports whether each controller has a certificate of its own, which names it.
func (r row) ownEach() bool { return r.name == NameKubernetes || r.name == NameEtcd }

// in returns the layout of the row's files.
func (r row) in(l Layout) Layout {
	if r.dir != "" {
		return Layout{Dir: r.dir}
	}
	return l
}

// A config is one kubeconfig.
type config struct {
	name   string // base name of its file
	cert   string // name of the certificate that it contains
	server func(Spec) string
	with   string // made only where this kubeconfig is missing, too, and before it; "" means always
	local  bool   // used by a program in kthwd, so a loopback server must be this machine's API server
	dir    string
}

// kubeconfigs lists every kubeconfig. One with an empty server is not made.
var kubeconfigs = []config{
	{name: NameSuperAdmin, cert: NameSuperAdmin, server: localServer, with: NameAdmin},
	{name: NameAdmin, cert: NameAdmin, server: localServer},
	{name: NameControllerManager, cert: NameControllerManager, server: localServer, local: true},
	{name: NameScheduler, cert: NameScheduler, server: localServer, local: true},
	{name: NameAdminRemote, cert: NameAdmin, server: func(s Spec) string { return s.RemoteServer }},
}

func localServer(s Spec) string { return s.Server }

func (k config) path(l Layout) string {
	return row{dir: k.dir}.in(l).Kubeconfig(k.name)
}

// clusterNames are the names of the API server's own service. The fifth name in the
// tutorials' list, kubernetes.default.svc.cluster, never resolves: it is issued for
// likeness, and a certificate may lack it.
var clusterNames = []string{
	"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
}

// serverNames returns the names in kubernetes.pem, without duplicates.
func serverNames(s Spec) []string {
	all := slices.Concat(s.Addresses, s.Local, []string{"127.0.0.1", "::1"})
	if s.ServiceIP != nil {
		all = append(all, s.ServiceIP.String())
	}
	all = append(append(all, "localhost"), clusterNames...)
	all = append(all, "kubernetes.default.svc.cluster")
	return unique(all)
}

// wishedNames returns the names that an existing kubernetes.pem should contain: those
// of machines and those for pods.
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
