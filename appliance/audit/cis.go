package audit

import p "kthwd/appliance/program"

// specFile is why the rules on pod specifications are about kthwd's configuration file.
const specFile = "the four programs are parts of kthwd, whose configuration file is their specification"

// strongSuites are the suites that the benchmark calls strong.
var strongSuites = []string{
	"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256",
	"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
	"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}

// throughSocket is the equivalent of TLS between the API server and etcd.
const throughSocket = "the API server reaches etcd through a unix socket in a directory of mode 0700; profile: cis uses TLS"

// Files of the data directory. The name of a key ends with -key.pem.
var (
	adminFiles = dataFiles("admin*.kubeconfig")
	allPKI     = dataFiles(".", "*.pem")
	keys       = dataFiles("*-key.pem")
)

// cisRules are sections 1 to 3 of the CIS Kubernetes Benchmark 1.12.
var cisRules = []rule{
	{id: "1.1.1", title: "API server specification file has mode 600", test: groupReadable(configFile), why: specFile},
	{id: "1.1.2", title: "API server specification file is root's", test: owner(configFile), why: specFile},
	{id: "1.1.3", title: "Controller manager specification file has mode 600", test: groupReadable(configFile), why: specFile},
	{id: "1.1.4", title: "Controller manager specification file is root's", test: owner(configFile), why: specFile},
	{id: "1.1.5", title: "Scheduler specification file has mode 600", test: groupReadable(configFile), why: specFile},
	{id: "1.1.6", title: "Scheduler specification file is root's", test: owner(configFile), why: specFile},
	{id: "1.1.7", title: "etcd specification file has mode 600", test: groupReadable(configFile), why: specFile},
	{id: "1.1.8", title: "etcd specification file is root's", test: owner(configFile), why: specFile},
	{id: "1.1.9", title: "CNI files have mode 600", manual: true, na: true, why: "a controller runs no kubelet and no CNI"},
	{id: "1.1.10", title: "CNI files are root's", manual: true, na: true, why: "a controller runs no kubelet and no CNI"},
	{id: "1.1.11", title: "etcd's data directory has mode 700", test: mode(etcdDir, 0o700)},
	{id: "1.1.12", title: "etcd's data directory is etcd's own user's", test: owner(etcdDir)},
	{id: "1.1.13", title: "Administrator's kubeconfig has mode 600", test: mode(adminFiles, 0o600)},
	{id: "1.1.14", title: "Administrator's kubeconfig is root's", test: owner(adminFiles)},
	{id: "1.1.15", title: "Scheduler's kubeconfig has mode 600", test: mode(named(p.Scheduler, "kubeconfig"), 0o600)},
	{id: "1.1.16", title: "Scheduler's kubeconfig is root's", test: owner(named(p.Scheduler, "kubeconfig"))},
	{id: "1.1.17", title: "Controller manager's kubeconfig has mode 600", test: mode(named(p.ControllerManager, "kubeconfig"), 0o600)},
	{id: "1.1.18", title: "Controller manager's kubeconfig is root's", test: owner(named(p.ControllerManager, "kubeconfig"))},
	{id: "1.1.19", title: "PKI directory and files are root's", test: owner(allPKI)},
	{id: "1.1.20", title: "PKI certificates have mode 644", manual: true, test: mode(dataFiles("*.pem"), 0o644)},
	{id: "1.1.21", title: "PKI keys have mode 600", manual: true, test: mode(keys, 0o600)},

	{id: "1.2.1", title: "No anonymous requests", manual: true, test: orElse(is(p.APIServer, "anonymous-auth", "false"), anonymousLimited, "only the paths of probes answer without credentials: load balancers ask them")},
	{id: "1.2.2", title: "No static tokens", test: unset(p.APIServer, "token-auth-file")},
	{id: "1.2.3", title: "DenyServiceExternalIPs is on", manual: true, test: has(p.APIServer, "enable-admission-plugins", "DenyServiceExternalIPs")},
	{id: "1.2.4", title: "A client certificate for kubelets", test: both(set(p.APIServer, "kubelet-client-certificate"), set(p.APIServer, "kubelet-client-key"))},
	{id: "1.2.5", title: "Kubelets' certificates are verified", test: set(p.APIServer, "kubelet-certificate-authority")},
	{id: "1.2.6", title: "Authorization is not AlwaysAllow", test: orElse(both(set(p.APIServer, "authorization-mode"), lacks(p.APIServer, "authorization-mode", "AlwaysAllow")), set(p.APIServer, "authorization-config"), "a file of yours names the authorizers")},
	{id: "1.2.7", title: "Authorization includes Node", test: has(p.APIServer, "authorization-mode", "Node")},
	{id: "1.2.8", title: "Authorization includes RBAC", test: has(p.APIServer, "authorization-mode", "RBAC")},
	{id: "1.2.9", title: "EventRateLimit is on", manual: true, test: has(p.APIServer, "enable-admission-plugins", "EventRateLimit"), fix: "kthwd's limits give way to your --kube-apiserver-arg=admission-control-config-file: add limits to that file, and EventRateLimit to --kube-apiserver-arg=enable-admission-plugins"},
	{id: "1.2.10", title: "AlwaysAdmit is off", test: lacks(p.APIServer, "enable-admission-plugins", "AlwaysAdmit")},
	{id: "1.2.11", title: "AlwaysPullImages is on", manual: true, test: orManual(has(p.APIServer, "enable-admission-plugins", "AlwaysPullImages")), why: "off: it makes every start of a pod depend on the registry. Switch it on where tenants share nodes and private images"},
	{id: "1.2.12", title: "ServiceAccount is on", test: lacks(p.APIServer, "disable-admission-plugins", "ServiceAccount")},
	{id: "1.2.13", title: "NamespaceLifecycle is on", test: lacks(p.APIServer, "disable-admission-plugins", "NamespaceLifecycle")},
	{id: "1.2.14", title: "NodeRestriction is on", test: has(p.APIServer, "enable-admission-plugins", "NodeRestriction")},
	{id: "1.2.15", title: "API server shows no profiles", test: is(p.APIServer, "profiling", "false")},
	{id: "1.2.16", title: "There is an audit log", test: set(p.APIServer, "audit-log-path")},
	{id: "1.2.17", title: "Audit log is kept 30 days", test: atLeast(p.APIServer, "audit-log-maxage", 30)},
	{id: "1.2.18", title: "Audit log keeps 10 old files", test: atLeast(p.APIServer, "audit-log-maxbackup", 10), why: "the guide keeps 3", fix: "set profile: cis, or --kube-apiserver-arg=audit-log-maxbackup=10"},
	{id: "1.2.19", title: "Audit log rotates at 100 MB", test: atLeast(p.APIServer, "audit-log-maxsize", 100)},
	{id: "1.2.20", title: "A request has a time limit", manual: true, test: flagTest(p.APIServer, "request-timeout", setFix(p.APIServer, "request-timeout", "1m0s"), func(v string, set bool) bool { return !set || v != "0" && v != "0s" }), why: "the default is a minute"},
	{id: "1.2.21", title: "Tokens of deleted service accounts are refused", test: isOrUnset(p.APIServer, "service-account-lookup", "true")},
	{id: "1.2.22", title: "Service accounts have a key of their own", test: set(p.APIServer, "service-account-key-file")},
	{id: "1.2.23", title: "API server has a client certificate for etcd", test: orElse(both(set(p.APIServer, "etcd-certfile"), set(p.APIServer, "etcd-keyfile")), socketOnly, throughSocket), fix: "set profile: cis"},
	{id: "1.2.24", title: "API server has a serving certificate", test: both(set(p.APIServer, "tls-cert-file"), set(p.APIServer, "tls-private-key-file"))},
	{id: "1.2.25", title: "API server verifies client certificates", test: set(p.APIServer, "client-ca-file")},
	{id: "1.2.26", title: "API server verifies etcd's certificate", test: orElse(set(p.APIServer, "etcd-cafile"), socketOnly, throughSocket), fix: "set profile: cis"},
	{id: "1.2.27", title: "Secrets are encrypted at rest", manual: true, test: set(p.APIServer, "encryption-provider-config")},
	{id: "1.2.28", title: "Encryption at rest is strong", manual: true, test: strongProvider},
	{id: "1.2.29", title: "API server has strong cipher suites only", manual: true, test: only(p.APIServer, "tls-cipher-suites", strongSuites)},
	{id: "1.2.30", title: "Tokens of pods are not extended", test: is(p.APIServer, "service-account-extend-token-expiration", "false")},

	{id: "1.3.1", title: "Terminated pods are collected", manual: true, test: set(p.ControllerManager, "terminated-pod-gc-threshold")},
	{id: "1.3.2", title: "Controller manager shows no profiles", test: is(p.ControllerManager, "profiling", "false")},
	{id: "1.3.3", title: "Each controller has its own service account", test: is(p.ControllerManager, "use-service-account-credentials", "true")},
	{id: "1.3.4", title: "Controller manager has the key of service accounts", test: set(p.ControllerManager, "service-account-private-key-file")},
	{id: "1.3.5", title: "Pods get the cluster's CA", test: set(p.ControllerManager, "root-ca-file")},
	{id: "1.3.6", title: "Kubelets' serving certificates rotate", test: lacks(p.ControllerManager, "feature-gates", "RotateKubeletServerCertificate=false")},
	{id: "1.3.7", title: "Controller manager listens on 127.0.0.1", test: is(p.ControllerManager, "bind-address", "127.0.0.1"), why: "the guide opens it to all addresses", fix: "set profile: cis, or --kube-controller-manager-arg=bind-address=127.0.0.1"},
	{id: "1.4.1", title: "Scheduler shows no profiles", test: is(p.Scheduler, "profiling", "false")},
	{id: "1.4.2", title: "Scheduler listens on 127.0.0.1", test: is(p.Scheduler, "bind-address", "127.0.0.1"), why: "as the controller manager's, on all addresses", fix: "set profile: cis, or --kube-scheduler-arg=bind-address=127.0.0.1"},

	{id: "2.1", title: "etcd has a serving certificate", test: both(set(p.Etcd, "cert-file"), set(p.Etcd, "key-file"))},
	{id: "2.2", title: "etcd verifies client certificates", test: is(p.Etcd, "client-cert-auth", "true")},
	{id: "2.3", title: "etcd makes no certificate for clients itself", test: isOrUnset(p.Etcd, "auto-tls", "false")},
	{id: "2.4", title: "etcd has a peer certificate", test: both(set(p.Etcd, "peer-cert-file"), set(p.Etcd, "peer-key-file"))},
	{id: "2.5", title: "etcd verifies peers' certificates", test: is(p.Etcd, "peer-client-cert-auth", "true")},
	{id: "2.6", title: "etcd makes no certificate for peers itself", test: isOrUnset(p.Etcd, "peer-auto-tls", "false")},
	{id: "2.7", title: "etcd has a CA of its own", manual: true, test: orElse(ownCA, controllersOnly, "of the certificates that the cluster's CA has signed, etcd admits controllers' only")},

	{id: "3.1.1", title: "No client certificates for users", manual: true, why: "give people tokens of an identity provider (jwt in authentication-config.yaml); admin.kubeconfig holds a certificate, for emergencies"},
	{id: "3.1.2", title: "No service account tokens for users", manual: true, why: "look at who holds them: kubectl get secrets -A, type kubernetes.io/service-account-token. kthwd makes none, and bounds each to a year"},
	{id: "3.1.3", title: "No bootstrap tokens for users", manual: true, test: flagTest(p.APIServer, "enable-bootstrap-token-auth", "set profile: cis, which leaves them off; those of kthwd node token are good for a node's certificate only",
		func(v string, set bool) bool { return !set || v == "false" })},
	{id: "3.2.1", title: "There is an audit policy", manual: true, test: set(p.APIServer, "audit-policy-file")},
	{id: "3.2.2", title: "Audit policy covers what matters", manual: true, test: auditPolicy},
}
