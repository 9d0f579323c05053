package pki

import "path/filepath"

// The names of the certificates, for Layout.Cert, Layout.Key and, where there
// is one, Layout.Kubeconfig.
const (
	NameKubernetes        = "kubernetes"              // API server, kubelet client; etcd without a CA of its own
	NameServiceAccount    = "service-account"         // signs service account tokens
	NameAdmin             = "admin"                   // kthwd:cluster-admins, and system:masters in an older directory
	NameSuperAdmin        = "super-admin"             // system:masters, whatever the bindings: to be kept offline
	NameControllerManager = "kube-controller-manager" // system:kube-controller-manager
	NameScheduler         = "kube-scheduler"          // system:kube-scheduler
	NameHealth            = "kthwd-health"            // client of the health bridge: no rights beyond any authenticated user's
	NameFrontProxyCA      = "front-proxy-ca"          // signs front-proxy-client, and nothing else
	NameFrontProxyClient  = "front-proxy-client"      // API server as a client of extension API servers
	NameEtcdCA            = "etcd-ca"                 // signs etcd, and nothing else
	NameEtcd              = "etcd"                    // etcd member: to its clients, its peers, and as a client of theirs
	NameAdminRemote       = "admin-remote"            // a kubeconfig only: admin through Spec.RemoteServer
	NameCA                = "ca"                      // the cluster's: Layout.CA and Layout.CAKey
)

// Layout defines every path below the data directory. Its methods only join strings;
// they neither create nor read files.
type Layout struct {
	Dir     string // the data directory, such as /var/lib/kubernetes
	EtcdDir string // etcd's data directory; "" means <Dir>/etcd

	// Elsewhere has the paths of files that are not in Dir, by their names there; see
	// Movable. kthwd reads such a file, and makes none.
	Elsewhere map[string]string
}

// Movable lists the names of files that may be elsewhere: those that a cluster made by hand
// has, too.
func Movable() (names []string) {
	l := Layout{}
	for _, name := range []string{NameCA, NameKubernetes, NameServiceAccount, NameFrontProxyCA, NameFrontProxyClient, NameEtcdCA, NameEtcd} {
		names = append(names, l.Cert(name), l.Key(name))
	}
	return append(names, l.Kubeconfig(NameControllerManager), l.Kubeconfig(NameScheduler), l.EncryptionConfig(), l.AuditPolicy(), l.SchedulerConfig())
}

// missing is the Misfit of a file outside Dir that does not exist.
func (l Layout) missing(path string) *Misfit {
	return &Misfit{File: path, Problem: "does not exist, and kthwd makes files in " + l.Dir + " only", Hint: "bring it back, or take its line out of files in the configuration"}
}

// isElsewhere reports whether the path is that of a file outside Dir.
func (l Layout) isElsewhere(path string) bool {
	for _, at := range l.Elsewhere {
		if at == path {
			return true
		}
	}
	return false
}

// CA is the certificate of the cluster's CA.
func (l Layout) CA() string { return l.Cert(NameCA) }

// CAKey is the key of the cluster's CA.
func (l Layout) CAKey() string { return l.Key(NameCA) }

// EtcdCA holds the CAs that etcd trusts, in a directory that has it: its own and, while a
// cluster moves to that, the cluster's.
func (l Layout) EtcdCA() string { return l.Cert(NameEtcdCA) }

// EtcdCAKey is the key of etcd's own CA.
func (l Layout) EtcdCAKey() string { return l.Key(NameEtcdCA) }

// Cert is the certificate called name, one of the Name constants.
func (l Layout) Cert(name string) string { return l.path(name + ".pem") }

// Key is the key of Cert(name).
func (l Layout) Key(name string) string { return l.path(name + "-key.pem") }

// Kubeconfig is the kubeconfig called name: of NameAdmin, NameSuperAdmin, NameAdminRemote,
// NameControllerManager or NameScheduler.
func (l Layout) Kubeconfig(name string) string { return l.path(name + ".kubeconfig") }

// EncryptionConfig configures how the API server encrypts secrets in etcd. It holds
// their key.
func (l Layout) EncryptionConfig() string { return l.path("encryption-config.yaml") }

// NextEncryptionConfig is EncryptionConfig as a rotation that has not ended makes it next.
func (l Layout) NextEncryptionConfig() string { return l.EncryptionConfig() + ".next" }

// NextCAKey is the key of the CA of that name as a rotation which has not ended gives it to all
// controllers.
func (l Layout) NextCAKey(name string) string { return l.Key(name) + ".next" }

// NextServiceAccountKey is the key of service account tokens that a rotation which has not ended
// gives to all controllers.
func (l Layout) NextServiceAccountKey() string { return l.Key(NameServiceAccount) + ".next" }

// AuditPolicy configures what the API server records.
func (l Layout) AuditPolicy() string { return l.path("audit-policy.yaml") }

// AuthenticationConfig configures which requests need no credentials, and who issues
// tokens besides the cluster.
func (l Layout) AuthenticationConfig() string { return l.path("authentication-config.yaml") }

// AuditLog is where the API server records requests.
func (l Layout) AuditLog() string { return l.path("audit.log") }

// UnauthenticatedAuditLog is where it records the requests of clients without valid
// credentials.
func (l Layout) UnauthenticatedAuditLog() string { return l.path("audit-unauthenticated.log") }

// SchedulerConfig is the KubeSchedulerConfiguration.
func (l Layout) SchedulerConfig() string { return l.path("kube-scheduler.yaml") }

// Etcd is etcd's data directory.
func (l Layout) Etcd() string {
	if l.EtcdDir != "" {
		return l.EtcdDir
	}
	return l.path("etcd")
}

// Run is the directory of the unix sockets. It must be created with mode 0700,
// because etcd's socket requires no certificate.
func (l Layout) Run() string { return l.path("run") }

// EtcdSocket is the socket at which the local API server reaches the etcd member.
func (l Layout) EtcdSocket() string { return filepath.Join(l.Run(), "etcd.sock") }

// ControlSocket is the socket at which kthwd's verbs reach the running kthwd.
func (l Layout) ControlSocket() string { return filepath.Join(l.Run(), "kthwd.sock") }

// Tracing configures where the API server sends traces. Each start with tracing
// writes it.
func (l Layout) Tracing() string { return filepath.Join(l.Run(), "tracing.yaml") }

// Admission configures the API server's admission plugins. Each start with a profile that
// needs it writes it.
func (l Layout) Admission() string { return filepath.Join(l.Run(), "admission.yaml") }

// Lock is held by the one kthwd that runs on this data directory.
func (l Layout) Lock() string { return l.path("kthwd.lock") }

// InstanceID distinguishes this data directory from every other one.
func (l Layout) InstanceID() string { return l.path("instance-id") }

// Record stores the identity of the data directory's etcd member, and the versions
// that served it last.
func (l Layout) Record() string { return l.path("member.json") }

// Names stores the names in kubernetes.pem as it was last used, for a new one.
func (l Layout) Names() string { return l.path("names.json") }

// JoinRecord identifies the join, from kthwd join to the first start.
func (l Layout) JoinRecord() string { return l.path("kthwd.join") }

// Restore is there from the moment at which a restore can no longer be undone to its end.
func (l Layout) Restore() string { return l.path("restore.json") }

// Kept holds what kthwd copies before a change that cannot be undone.
func (l Layout) Kept() string { return l.path("kept") }

// Files lists the names, below Dir, of everything that kthwd may create there,
// including etcd's data in its default place. Any other file is not kthwd's.
func (l Layout) Files() []string {
	l = Layout{}
	files := []string{
		l.CA(), l.CAKey(), l.NextCAKey(NameCA), l.NextCAKey(NameFrontProxyCA), l.NextCAKey(NameEtcdCA), l.EncryptionConfig(), l.NextEncryptionConfig(), l.NextServiceAccountKey(), l.AuditPolicy(), l.AuthenticationConfig(), l.AuditLog(), l.UnauthenticatedAuditLog(), l.SchedulerConfig(),
		filepath.Join(l.Etcd(), "member"), l.Run(), l.Lock(), l.InstanceID(), l.Record(), l.JoinRecord(), l.Names(), l.Restore(), l.Kept(),
	}
	for _, name := range []string{
		NameKubernetes, NameServiceAccount, NameAdmin, NameSuperAdmin, NameControllerManager, NameScheduler,
		NameHealth, NameFrontProxyCA, NameFrontProxyClient, NameEtcdCA, NameEtcd,
	} {
		files = append(files, l.Cert(name), l.Key(name))
	}
	for _, name := range []string{NameAdmin, NameSuperAdmin, NameControllerManager, NameScheduler, NameAdminRemote} {
		files = append(files, l.Kubeconfig(name))
	}
	return files
}

// Path is the path of a file by its name in Dir.
func (l Layout) Path(name string) string { return l.path(name) }

func (l Layout) path(name string) string {
	if at, ok := l.Elsewhere[name]; ok {
		return at
	}
	return filepath.Join(l.Dir, name)
}
