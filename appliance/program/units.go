package program

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
)

// KeyShutdownDelay is the API server's flag for how long it serves while it stops.
const KeyShutdownDelay = "shutdown-delay-duration"

// KeyAuthentication is the API server's flag for the file that restricts anonymous requests.
const KeyAuthentication = "authentication-config"

// strongCiphers are Go's secure suites of TLS 1.2 that keep past traffic secret when a key is
// lost, without those in CBC mode, which upstream allows by default. TLS 1.3 has no others.
const strongCiphers = "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256," +
	"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384," +
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"

// tlsMinVersion is the default, made explicit: the STIG wants it written down.
const tlsMinVersion = "VersionTLS12"

// The four functions below are the tutorial's unit files as data: each returns the
// flags of one program in the guide's order, with today's names.
// docs/tutorial-differences.md explains every line that differs from the guide.

// keyQuota is etcd's flag for the size at which its database accepts no more writes.
const (
	keyQuota = "quota-backend-bytes"
	quota    = 8 << 30
)

// Quota returns the size in bytes that etcd's database may reach; without a quota what etcd
// reserves at once.
func Quota(c config.Controller) uint64 {
	users := ParseUser(c.EtcdArgs)
	if !slices.ContainsFunc(users, func(a Arg) bool { return a.Key == keyQuota }) {
		return quota
	}
	n, err := strconv.ParseInt(Value(users, keyQuota), 10, 64)
	switch {
	case err != nil || n < 0:
		return 10 << 30 // etcd/server/storage/backend: InitialMmapSize
	case n == 0:
		return 2 << 30 // etcd/server/storage/quota.go: DefaultQuotaBytes
	}
	return uint64(n)
}

// EtcdArgs is etcd.service from the guide's second part. socket is the path of the
// unix socket that only the local API server uses.
func EtcdArgs(c config.Controller, l pki.Layout, socket string) []Arg {
	host := func(port int) string { return "https://" + net.JoinHostPort(c.AdvertiseAddress, strconv.Itoa(port)) }
	return profiled(Etcd, c, l, append([]Arg{
		{"name", c.Name},
		{"cert-file", l.Cert(pki.NameEtcd)},
		{"key-file", l.Key(pki.NameEtcd)},
		{"peer-cert-file", l.Cert(pki.NameEtcd)},
		{"peer-key-file", l.Key(pki.NameEtcd)},
		{"trusted-ca-file", l.EtcdCA()},
		{"peer-trusted-ca-file", l.EtcdCA()},
		{"peer-client-cert-auth", "true"},
		{"client-cert-auth", "true"},
		{"initial-advertise-peer-urls", host(c.EtcdPeerPort)},
		{"listen-peer-urls", host(c.EtcdPeerPort)},
		{"listen-client-urls", clientURLs(c, socket)},
		{"advertise-client-urls", host(c.EtcdClientPort)},
		{"initial-cluster-token", "etcd-cluster-0"},
		{"initial-cluster", c.EtcdInitialCluster()},
		{"initial-cluster-state", c.InitialClusterState},
		{"data-dir", l.Etcd()},
		{"auto-tls", "false"}, // the default, made explicit, as the next one: the STIG wants them written down
		{"peer-auto-tls", "false"},
		{"cipher-suites", strongCiphers},
		{"tls-min-version", "TLS1.2"},        // the default, made explicit
		{"snapshot-catchup-entries", "1000"}, // 5000 by default, all kept in memory (etcdserver/server.go)
		{keyQuota, strconv.Itoa(quota)},      // 8 GiB, the most etcd advises; 2 GiB by default
	}, etcdTracingArgs(c)...))
}

// WithEtcdFiles makes etcd use the files of a directory that has no CA of etcd's own, or is
// on its way there.
func WithEtcdFiles(args []Arg, f pki.EtcdFiles) []Arg {
	for i := range args {
		switch args[i].Key {
		case "cert-file", "peer-cert-file":
			args[i].Value = f.Cert
		case "key-file", "peer-key-file":
			args[i].Value = f.Key
		case "trusted-ca-file", "peer-trusted-ca-file":
			args[i].Value = f.CA
		}
	}
	return args
}

// APIServerArgs is the guide's kube-apiserver.service.
func APIServerArgs(c config.Controller, l pki.Layout, socket string) []Arg {
	args := []Arg{
		{"advertise-address", c.AdvertiseAddress},
		{"allow-privileged", "true"},
		{"audit-log-maxage", "30"},
		{"audit-log-maxbackup", "3"},
		{"audit-log-maxsize", "100"},
		{"audit-log-path", l.AuditLog()},
		{"audit-policy-file", l.AuditPolicy()},
		{"authorization-mode", "Node,RBAC"},
		{"bind-address", c.BindAddress},
		{"secure-port", strconv.Itoa(c.SecurePort)},
		{"client-ca-file", l.CA()},
		{keyAdmissionPlugins, "NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota,DenyServiceExternalIPs," + eventRateLimit},
		{keyAdmissionConfig, l.Admission()},
		{"etcd-servers", "unix://" + socket},
		{"enable-bootstrap-token-auth", "true"}, // for kthwd node token; without a token it accepts nothing
		{"event-ttl", "1h"},
		{"encryption-provider-config", l.EncryptionConfig()},
		{"kubelet-certificate-authority", l.CA()},
		{"kubelet-client-certificate", l.Cert(pki.NameKubernetes)},
		{"kubelet-client-key", l.Key(pki.NameKubernetes)},
		{"kubelet-preferred-address-types", "InternalIP,InternalDNS,Hostname,ExternalIP,ExternalDNS"},
		{"runtime-config", "api/all=true"},
		{"service-account-issuer", "https://kubernetes.default.svc.cluster.local"},
		{"service-account-key-file", l.Cert(pki.NameServiceAccount)},
		{"service-account-signing-key-file", l.Key(pki.NameServiceAccount)},
		{"service-account-max-token-expiration", "8760h"}, // without it a namespace's admin gets tokens for decades
		{"service-account-extend-token-expiration", "false"},
		{"service-cluster-ip-range", c.ServiceClusterIPRange},
		{"service-node-port-range", "30000-32767"},
		{"tls-cert-file", l.Cert(pki.NameKubernetes)},
		{"tls-private-key-file", l.Key(pki.NameKubernetes)},
		{"tls-cipher-suites", strongCiphers},
		{"tls-min-version", tlsMinVersion},
		{"request-timeout", "1m0s"}, // the default, made explicit
		{"profiling", "false"},      // it shows the whole process; --metrics-pprof has it
		{"requestheader-client-ca-file", l.Cert(pki.NameFrontProxyCA)},
		{"requestheader-allowed-names", "front-proxy-client"},
		{"requestheader-username-headers", "X-Remote-User"},
		{"requestheader-group-headers", "X-Remote-Group"},
		{"requestheader-extra-headers-prefix", "X-Remote-Extra-"},
		{"proxy-client-cert-file", l.Cert(pki.NameFrontProxyClient)},
		{"proxy-client-key-file", l.Key(pki.NameFrontProxyClient)},
		{"enable-aggregator-routing", "true"},      // no kube-proxy here: service IPs are unreachable
		{KeyShutdownDelay, shutdownDelay.String()}, // dropped for a cluster of one: see leaving.go
		// Without it the stop waits up to 60 s for every kubelet's and kubectl's watch (genericapiserver.go).
		{"shutdown-watch-termination-grace-period", "2s"},
	}
	if !usersAuthentication(c.APIServerArgs) {
		args = append(args, Arg{KeyAuthentication, l.AuthenticationConfig()})
	}
	if isLoopback(c.AdvertiseAddress) {
		// The API refuses loopback addresses in Endpoints, so there is nothing to reconcile.
		args = append(args, Arg{"endpoint-reconciler-type", "none"})
	}
	if c.TracingEndpoint != "" {
		args = append(args, Arg{"tracing-config-file", l.Tracing()})
	}
	return profiled(APIServer, c, l, args)
}

// usersAuthentication reports whether the user's flags exclude the file: upstream refuses
// --anonymous-auth beside it, and ignores --oidc-* (kubeapiserver/options/authentication.go).
func usersAuthentication(args []string) bool {
	return slices.ContainsFunc(ParseUser(args), func(a Arg) bool {
		return a.Key == "anonymous-auth" || strings.HasPrefix(a.Key, "oidc-")
	})
}

// ControllerManagerArgs is the guide's kube-controller-manager.service.
func ControllerManagerArgs(c config.Controller, l pki.Layout) []Arg {
	kubeconfig := l.Kubeconfig(pki.NameControllerManager)
	return profiled(ControllerManager, c, l, append([]Arg{
		{"bind-address", ControllersBind(c)},
		{"secure-port", strconv.Itoa(c.ControllerManagerPort)},
		{"cluster-cidr", c.ClusterCIDR},
		{"cluster-name", "kubernetes"},
		{"cluster-signing-cert-file", l.CA()},
		{"cluster-signing-key-file", l.CAKey()},
		{"controllers", "*,bootstrap-signer-controller,token-cleaner-controller"}, // the two that kthwd node token needs
		{"kubeconfig", kubeconfig},
		{"leader-elect", "true"},
		{"root-ca-file", l.CA()},
		{"service-account-private-key-file", l.Key(pki.NameServiceAccount)},
		{"service-cluster-ip-range", c.ServiceClusterIPRange},
		{"use-service-account-credentials", "true"},
		{"profiling", "false"},
		{"terminated-pod-gc-threshold", "12500"}, // the default, made explicit
		// 20 and 30 by default, which alone is 4.5 s of a first start (119 requests).
		{"kube-api-qps", "300"},
		{"kube-api-burst", "600"},
	}, servingArgs(l, kubeconfig)...))
}

// WithSigner makes kube-controller-manager sign with the CA certificate in the file
// signer: it wants exactly one, while ca.pem may hold the CAs of a rotation. Without a
// signer the signing flags are dropped, because the CA's key is kept elsewhere:
// kube-controller-manager runs without signing, but not with a missing key file
// (kube-controller-manager/app/certificates.go).
func WithSigner(args []Arg, signer string) []Arg {
	const cert, key = "cluster-signing-cert-file", "cluster-signing-key-file"
	if signer == "" {
		return slices.DeleteFunc(args, func(a Arg) bool { return a.Key == cert || a.Key == key })
	}
	for i := range args {
		if args[i].Key == cert {
			args[i].Value = signer
		}
	}
	return args
}

// KeyEmulated is the flag of the API server that counts for all programs of a process: they
// share one registry of versions (component-base/compatibility).
const KeyEmulated = "emulated-version"

// WithEmulation returns the API server's args with a minor of Kubernetes that it emulates; ""
// is its own.
func WithEmulation(args []Arg, minor string) []Arg {
	if minor == "" {
		return args
	}
	return append(args, Arg{KeyEmulated, minor})
}

// SchedulerArgs is the guide's kube-scheduler.service and kube-scheduler.yaml.
func SchedulerArgs(c config.Controller, l pki.Layout) []Arg {
	kubeconfig := l.Kubeconfig(pki.NameScheduler)
	return profiled(Scheduler, c, l, append([]Arg{
		{"bind-address", ControllersBind(c)},
		{"secure-port", strconv.Itoa(c.SchedulerPort)},
		{"kubeconfig", kubeconfig},
		{"leader-elect", "true"},
		{"kube-api-qps", "1000"}, // 50 and 100 by default bind 55 pods a second
		{"kube-api-burst", "2000"},
		// On by default: it would also record every blocking event of etcd and the API server.
		{"contention-profiling", "false"},
		{"profiling", "false"},
	}, servingArgs(l, kubeconfig)...))
}

// servingArgs lets /metrics on 10257 and 10259 authenticate its clients; with the
// guide's flags only /healthz is open there.
func servingArgs(l pki.Layout, kubeconfig string) []Arg {
	return []Arg{
		{"authentication-kubeconfig", kubeconfig},
		{"authorization-kubeconfig", kubeconfig},
		{"authentication-skip-lookup", "true"}, // a lookup at start would need the API server
		{"client-ca-file", l.CA()},
		{"tls-cert-file", l.Cert(pki.NameKubernetes)},
		{"tls-private-key-file", l.Key(pki.NameKubernetes)},
		{"tls-cipher-suites", strongCiphers},
		{"tls-min-version", tlsMinVersion},
	}
}

// ControllersBind keeps the guide's 0.0.0.0, unless the profile is config.ProfileCIS: kubectl get
// componentstatuses queries 127.0.0.1, whatever address the API server listens on.
func ControllersBind(c config.Controller) string {
	switch {
	case isLoopback(c.BindAddress):
		return c.BindAddress
	case c.Profile == config.ProfileCIS:
		return "127.0.0.1"
	}
	return "0.0.0.0"
}
