package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
)

// arg is one --key=value of an embedded program.
type arg struct{ key, value string }

func (a arg) String() string { return "--" + a.key + "=" + a.value }

// keyShutdownDelay is the API server's flag for how long to serve while leaving.
const keyShutdownDelay = "shutdown-delay-duration"

func render(args []arg) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a.String()
	}
	return out
}

// The four functions below are the tutorial's unit files as data: each yields
// the flag set of one program in the order of the guide, in today's words.
// docs/tutorial-differences.md explains every line that is not the guide's own.

// etcdArgs is the etcd.service of the guide's second part. socket is the path
// of the unix socket that only the local API server uses.
func etcdArgs(c config.Controller, l pki.Layout, socket string) []arg {
	host := func(port int) string { return "https://" + net.JoinHostPort(c.AdvertiseAddress, strconv.Itoa(port)) }
	local := "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.EtcdClientPort))
	clients := []string{host(c.EtcdClientPort)}
	if c.AdvertiseAddress != "127.0.0.1" {
		clients = append(clients, local)
	}
	clients = append(clients, "unix://"+socket)
	return append([]arg{
		{"name", c.Name},
		{"cert-file", l.Cert(pki.NameKubernetes)},
		{"key-file", l.Key(pki.NameKubernetes)},
		{"peer-cert-file", l.Cert(pki.NameKubernetes)},
		{"peer-key-file", l.Key(pki.NameKubernetes)},
		{"trusted-ca-file", l.CA()},
		{"peer-trusted-ca-file", l.CA()},
		{"peer-client-cert-auth", "true"},
		{"client-cert-auth", "true"},
		{"initial-advertise-peer-urls", host(c.EtcdPeerPort)},
		{"listen-peer-urls", host(c.EtcdPeerPort)},
		{"listen-client-urls", strings.Join(clients, ",")},
		{"advertise-client-urls", host(c.EtcdClientPort)},
		{"initial-cluster-token", "etcd-cluster-0"},
		{"initial-cluster", c.EtcdInitialCluster()},
		{"initial-cluster-state", c.InitialClusterState},
		{"data-dir", l.Etcd()},
		{"snapshot-catchup-entries", "1000"},  // 5000 by default, all kept in memory (etcdserver/server.go)
		{"quota-backend-bytes", "8589934592"}, // 8 GiB, the most etcd advises; 2 GiB by default
	}, etcdTracingArgs(c)...)
}

// apiserverArgs is the guide's kube-apiserver.service.
func apiserverArgs(c config.Controller, l pki.Layout, socket string) []arg {
	args := []arg{
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
		{"enable-admission-plugins", "NamespaceLifecycle,NodeRestriction,LimitRanger,ServiceAccount,DefaultStorageClass,ResourceQuota"},
		{"etcd-servers", "unix://" + socket},
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
		{"service-cluster-ip-range", c.ServiceClusterIPRange},
		{"service-node-port-range", "30000-32767"},
		{"tls-cert-file", l.Cert(pki.NameKubernetes)},
		{"tls-private-key-file", l.Key(pki.NameKubernetes)},
		{"requestheader-client-ca-file", l.Cert(pki.NameFrontProxyCA)},
		{"requestheader-allowed-names", "front-proxy-client"},
		{"requestheader-username-headers", "X-Remote-User"},
		{"requestheader-group-headers", "X-Remote-Group"},
		{"requestheader-extra-headers-prefix", "X-Remote-Extra-"},
		{"proxy-client-cert-file", l.Cert(pki.NameFrontProxyClient)},
		{"proxy-client-key-file", l.Key(pki.NameFrontProxyClient)},
		{"enable-aggregator-routing", "true"},      // no kube-proxy here: a service IP leads nowhere
		{keyShutdownDelay, shutdownDelay.String()}, // not of a cluster of one: see leaving.go
		// Without it the stop waits up to 60 s for every kubelet's and kubectl's watch (genericapiserver.go).
		{"shutdown-watch-termination-grace-period", "2s"},
	}
	if ip := net.ParseIP(c.AdvertiseAddress); ip != nil && ip.IsLoopback() {
		// The API refuses loopback addresses in Endpoints, so there is nothing to reconcile.
		args = append(args, arg{"endpoint-reconciler-type", "none"})
	}
	if c.TracingEndpoint != "" {
		args = append(args, arg{"tracing-config-file", l.Tracing()})
	}
	return args
}

// controllerManagerArgs is the guide's kube-controller-manager.service.
func controllerManagerArgs(c config.Controller, l pki.Layout) []arg {
	kubeconfig := l.Kubeconfig(pki.NameControllerManager)
	return append([]arg{
		{"bind-address", controllersBind(c)},
		{"secure-port", strconv.Itoa(c.ControllerManagerPort)},
		{"cluster-cidr", c.ClusterCIDR},
		{"cluster-name", "kubernetes"},
		{"cluster-signing-cert-file", l.CA()},
		{"cluster-signing-key-file", l.CAKey()},
		{"kubeconfig", kubeconfig},
		{"leader-elect", "true"},
		{"root-ca-file", l.CA()},
		{"service-account-private-key-file", l.Key(pki.NameServiceAccount)},
		{"service-cluster-ip-range", c.ServiceClusterIPRange},
		{"use-service-account-credentials", "true"},
		// 20 and 30 by default, which alone is 4.5 s of a first start (119 requests).
		{"kube-api-qps", "300"},
		{"kube-api-burst", "600"},
	}, servingArgs(l, kubeconfig)...)
}

// withoutMissingKey drops the signing flags when the CA's key is kept elsewhere:
// kube-controller-manager runs without signing, but not with a key that is not there
// (kube-controller-manager/app/certificates.go).
func withoutMissingKey(args []arg, l pki.Layout) []arg {
	if _, err := os.Stat(l.CAKey()); !errors.Is(err, fs.ErrNotExist) {
		return args
	}
	return slices.DeleteFunc(args, func(a arg) bool {
		return a.key == "cluster-signing-cert-file" || a.key == "cluster-signing-key-file"
	})
}

// schedulerArgs is the guide's kube-scheduler.service and kube-scheduler.yaml.
func schedulerArgs(c config.Controller, l pki.Layout) []arg {
	kubeconfig := l.Kubeconfig(pki.NameScheduler)
	return append([]arg{
		{"bind-address", controllersBind(c)},
		{"secure-port", strconv.Itoa(c.SchedulerPort)},
		{"kubeconfig", kubeconfig},
		{"leader-elect", "true"},
		{"kube-api-qps", "1000"}, // 50 and 100 by default bind 55 pods a second
		{"kube-api-burst", "2000"},
		// On by default, and it would record every blocking event of etcd and the API server too.
		{"contention-profiling", "false"},
	}, servingArgs(l, kubeconfig)...)
}

// servingArgs lets /metrics on 10257 and 10259 know who asks; the guide's flags
// leave only /healthz open there.
func servingArgs(l pki.Layout, kubeconfig string) []arg {
	return []arg{
		{"authentication-kubeconfig", kubeconfig},
		{"authorization-kubeconfig", kubeconfig},
		{"authentication-skip-lookup", "true"}, // a lookup at start would need the API server
		{"client-ca-file", l.CA()},
		{"tls-cert-file", l.Cert(pki.NameKubernetes)},
		{"tls-private-key-file", l.Key(pki.NameKubernetes)},
	}
}

// controllersBind keeps the guide's 0.0.0.0: kubectl get componentstatuses asks
// 127.0.0.1, whatever address the API server listens on.
func controllersBind(c config.Controller) string {
	if ip := net.ParseIP(c.BindAddress); ip != nil && ip.IsLoopback() {
		return c.BindAddress
	}
	return "0.0.0.0"
}

// override is a flag of kthwd's that the user's pass-through argument replaced.
type override struct{ program, key, ours, users string }

// merge lays the user's arguments over kthwd's. A key that the user gives
// replaces kthwd's wholly, because list flags would otherwise add up.
func merge(program string, ours, users []arg) ([]arg, []override) {
	given := map[string][]string{}
	for _, a := range users {
		given[a.key] = append(given[a.key], a.value)
	}
	var overrides []override
	merged := make([]arg, 0, len(ours)+len(users))
	for _, a := range ours {
		values, replaced := given[a.key]
		if !replaced {
			merged = append(merged, a)
			continue
		}
		if theirs := strings.Join(values, ","); theirs != a.value {
			overrides = append(overrides, override{program, a.key, a.value, theirs})
		}
	}
	return append(merged, users...), overrides
}

// parseUserArgs reads "key=value" pairs; leading dashes are forgiven, a bare key
// means true, as on a command line, and underscores are dashes, as upstream.
func parseUserArgs(raw []string) []arg {
	args := make([]arg, 0, len(raw))
	for _, r := range raw {
		key, value, found := strings.Cut(strings.TrimLeft(r, "-"), "=")
		if !found {
			value = "true"
		}
		// Upstream's parsers take foo_bar for foo-bar, too (component-base/cli/flag/flags.go).
		args = append(args, arg{strings.ReplaceAll(key, "_", "-"), value})
	}
	return args
}

// owned are the keys that kthwd's other parts rely on: a pass-through argument
// may repeat kthwd's value, but not change it. The value says what to set instead.
var owned = map[string]map[string]string{
	nameEtcd: {
		"data-dir":           "set --etcd-data-dir",
		"listen-client-urls": "set --advertise-address or --etcd-client-port",
		"log-level":          "set --log-level=etcd=LEVEL",
		"logger":             "kthwd has one logger",
		"log-outputs":        "kthwd has one logger",
		"config-file":        "give its settings as --etcd-arg",
	},
	nameAPIServer: {
		"advertise-address":        "set --advertise-address",
		"bind-address":             "set --bind-address",
		"secure-port":              "set --secure-port",
		"service-cluster-ip-range": "set --service-cluster-ip-range",
		"etcd-servers":             "a kthwd API server uses the member beside it",
		"etcd-cafile":              "a kthwd API server uses the member beside it",
		"etcd-certfile":            "a kthwd API server uses the member beside it",
		"etcd-keyfile":             "a kthwd API server uses the member beside it",
		"client-ca-file":           "put the file into --data-dir under the guide's name",
		"tls-cert-file":            "put the file into --data-dir under the guide's name",
		"tls-private-key-file":     "put the file into --data-dir under the guide's name",
	},
	nameControllerManager: {
		"secure-port":              "set --controller-manager-port",
		"kubeconfig":               "put the file into --data-dir under the guide's name",
		"service-cluster-ip-range": "set --service-cluster-ip-range",
		"cluster-cidr":             "set --cluster-cidr",
	},
	nameScheduler: {
		"secure-port":     "set --scheduler-port",
		"kubeconfig":      "put the file into --data-dir under the guide's name",
		"write-config-to": "upstream's code exits the process there",
	},
}

// harmless are owned keys whose value in the guide cannot be kept and need not
// be: the files and addresses it names are the ones that kthwd uses anyway.
var harmless = map[string]bool{
	"etcd-servers": true, "etcd-cafile": true, "etcd-certfile": true, "etcd-keyfile": true,
}

// checkOwned refuses the user's arguments that kthwd cannot follow.
func checkOwned(program string, ours, users []arg) (kept []arg, warnings []string, errs []error) {
	for _, u := range users {
		instead, isOwned := owned[program][u.key]
		same := slices.Contains(ours, u)
		switch {
		case !isOwned || same:
			kept = append(kept, u)
		case harmless[u.key]:
			warnings = append(warnings, fmt.Sprintf("%s: %s dropped: %s", program, u, instead))
		default:
			errs = append(errs, WithHint(fmt.Errorf("--%s-arg=%s=%s: kthwd sets this flag itself", program, u.key, u.value), instead))
		}
	}
	return kept, warnings, errs
}
