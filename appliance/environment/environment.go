// Package environment decides what the variables that a controller inherits may do.
//
// Flags and the configuration file say how kthwd runs; the code that it embeds reads
// variables as well. Table lists them, each with what kthwd does about it. Take does it,
// and returns what the log must say. Call Take once, before the first HTTP request:
// net/http reads the variables of proxies at its first use and never again.
//
// The package imports nothing of kthwd. A load balancer needs no call: nothing that it
// opens goes through a proxy.
package environment

import (
	"cmp"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Action is what kthwd does about a variable.
type Action string

// The actions.
const (
	Passed    Action = "passed on" // the code that reads it sees it, and that is intended
	Completed Action = "completed" // kthwd adds to its value
	Warned    Action = "warned of" // read before kthwd could remove it, so the log says it
	Removed   Action = "removed"   // no code of this process sees it
	Refused   Action = "removed, and the log says so"
	Ignored   Action = "ignored" // no code of a controller reads it
)

// Variable is a row of the table. A Name that ends with * stands for all that begin so.
type Variable struct {
	Name   string
	Action Action
	Why    string
}

// Table returns all variables that embedded code reads, and some that it only seems to
// read. The most special name comes first.
func Table() []Variable {
	return slices.Clone(table)
}

const direct = "used for URLs outside the cluster whose host is a name, such as a webhook's or OIDC's; never for an address"

var table = []Variable{
	{"HTTP_PROXY", Passed, direct},
	{"http_proxy", Passed, direct},
	{"HTTPS_PROXY", Passed, direct},
	{"https_proxy", Passed, direct},
	{"NO_PROXY", Completed, "with all addresses, localhost, .svc, .cluster.local and the servers of the kubeconfigs, when there is a proxy"},
	{"no_proxy", Completed, "as NO_PROXY"},
	{"ALL_PROXY", Ignored, "Go does not read it"},
	{"all_proxy", Ignored, "Go does not read it"},
	{"REQUEST_METHOD", Removed, "with it, Go takes the process for a CGI program and refuses HTTP_PROXY"},

	{"KUBERNETES_SERVICE_*", Removed, "client-go would take the process for a pod of the cluster around it"},
	{"KUBERNETES_MASTER", Removed, "client-go would use it as server of a kubeconfig without one"},
	{"KUBECONFIG", Removed, "kubeconfigs are named by flags only"},
	{"POD_NAMESPACE", Removed, "client-go would use it as namespace"},
	{"KUBE_CACHE_MUTATION_DETECTOR", Refused, "for tests of Kubernetes: costs memory and ends the process"},
	{"KUBE_WATCHLIST_INCONSISTENCY_DETECTOR", Refused, "for tests of Kubernetes: lists everything twice"},
	{"KUBE_WATCHCACHE_CONSISTENCY_CHECKER", Refused, "for tests of Kubernetes: ends the process"},
	{"KUBE_PANIC_WATCH_DECODE_ERROR", Refused, "for tests of Kubernetes: ends the process"},
	{"KUBE_PATCH_CONVERSION_DETECTOR", Refused, "for tests of Kubernetes"},
	{"KUBE_*", Refused, "set the flag with --kube-apiserver-arg, --kube-controller-manager-arg or --kube-scheduler-arg, such as feature-gates"},
	{"DISABLE_HTTP2", Refused, "client-go would use one connection for each request"},
	{"HTTP2_READ_IDLE_TIMEOUT_SECONDS", Refused, "client-go would notice dead connections at other times"},
	{"HTTP2_PING_TIMEOUT_SECONDS", Refused, "as HTTP2_READ_IDLE_TIMEOUT_SECONDS"},

	{"ETCD_CLIENT_DEBUG", Refused, "set the level with --log-level=etcd=debug"},
	{"ETCD_VERIFY", Refused, "for tests of etcd: ends the process"},
	{"BBOLT_VERIFY", Refused, "for tests of etcd: ends the process"},
	{"ETCD_*", Refused, "set the flag with --etcd-arg"},
	{"ETCDCTL_*", Ignored, "etcdctl reads it"},

	{"NOTIFY_SOCKET", Removed, "kthwd itself reports to systemd"},
	{"WATCHDOG_*", Removed, "kthwd itself reports to systemd"},
	{"LISTEN_*", Removed, "sockets from systemd are for the load balancer"},
	{"JOURNAL_STREAM", Passed, "decides the form of the log"},

	{"GODEBUG", Warned, "changes Go's runtime, its TLS and its certificates' checks in all programs"},
	{"GOGC", Passed, "replaces kthwd's own tuning"},
	{"GOMEMLIMIT", Passed, "replaces kthwd's own tuning"},
	{"GOMAXPROCS", Passed, "Go's runtime reads it"},
	{"GOTRACEBACK", Passed, "Go's runtime reads it"},
	{"GOPROTODEBUG", Warned, "for tests of protobuf"},
	{"GOLANG_PROTOBUF_*", Warned, "for tests of protobuf"},
	{"DEBUG_HTTP2_GOROUTINES", Warned, "for tests of Go: ends the process"},
	{"SSL_CERT_FILE", Passed, "CAs of URLs outside the cluster; inside it, only the cluster's own CA counts"},
	{"SSL_CERT_DIR", Passed, "as SSL_CERT_FILE"},
	{"RES_OPTIONS", Passed, "Go's resolver reads it"},
	{"LOCALDOMAIN", Passed, "Go's resolver reads it"},
	{"TZ", Passed, "time zone of the log, and of a CronJob without timeZone"},
	{"ZONEINFO", Passed, "Go reads time zones there"},
	{"TMPDIR", Passed, "no file of the control plane is there"},
	{"HOME", Passed, "exec plugins of a kubeconfig may need it; no program reads a file below it"},
	{"PATH", Passed, "exec plugins of a kubeconfig may need it"},
	{"HOSTNAME", Ignored, "the kernel is asked for the host name"},

	{"GRPC_*", Warned, "changes etcd's connections and the exporter of traces"},
	{"OTEL_*", Passed, "the exporter of traces reads it, see --tracing-endpoint"},
	{"DEBUG", Ignored, "kubectl exec would print its frames"},
	{"FSNOTIFY_DEBUG", Ignored, "writes to a log that nobody reads"},
	{"SWAGGER_DEBUG", Ignored, "no code of a controller reads it"},
	{"GOPATH", Ignored, "no code of a controller reads it"},
	{"GOOGLE_CLIENT_ID", Ignored, "no code of a controller reads it"},
	{"DBUS_*", Ignored, "no code of a controller reads it"},
	{"XDG_RUNTIME_DIR", Ignored, "no code of a controller reads it"},
	{"SUDO_USER", Ignored, "no code of a controller reads it"},
	{"CONTAINERD_NAMESPACE", Ignored, "no code of a controller reads it"},
	{"CLICOLOR*", Ignored, "no code of a controller reads it"},
	{"NO_COLOR", Passed, "no colours in the output of kthwd"},
	{"TERM", Passed, "no colours in the output of kthwd on a dumb terminal"},
}

// Of returns the row of a variable, and whether there is one.
func Of(name string) (Variable, bool) {
	for _, v := range table {
		if stem, all := strings.CutSuffix(v.Name, "*"); v.Name == name || all && strings.HasPrefix(name, stem) {
			return v, true
		}
	}
	return Variable{}, false
}

// Note is a line for the log.
type Note struct {
	Warning bool
	Text    string
	Name    string // the variable, or several with commas
}

// early are variables that packages of Kubernetes read while they are initialised.
var early = []string{
	"KUBE_CACHE_MUTATION_DETECTOR",          // client-go/tools/cache/mutation_detector.go
	"KUBE_PATCH_CONVERSION_DETECTOR",        // apimachinery/pkg/runtime/converter.go
	"KUBE_PANIC_WATCH_DECODE_ERROR",         // apiserver/pkg/storage/etcd3/watcher.go
	"KUBE_WATCHCACHE_CONSISTENCY_CHECKER",   // apiserver/pkg/storage/cacher/consistency/checker.go
	"KUBE_WATCHLIST_INCONSISTENCY_DETECTOR", // client-go/util/consistencydetector
}

// gone are those that TakeEarly has removed.
var gone []string

// TakeEarly removes the variables that Take would be too late for. A package that is initialised
// before those of Kubernetes calls it; Take says what it has removed.
func TakeEarly() {
	for _, name := range early {
		if os.Getenv(name) != "" {
			gone = append(gone, name)
		}
		os.Unsetenv(name)
	}
}

// Take changes the process's environment as Table says, and returns what there is to
// say. inside are further hosts that are never asked through a proxy. A value is never
// part of a Note, because it may hold a secret.
func Take(inside []string) (notes []Note) {
	names := slices.Clone(gone)
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		v, _ := Of(name)
		switch v.Action {
		case Removed:
			os.Unsetenv(name)
		case Refused:
			os.Unsetenv(name)
			notes = append(notes, Note{true, "variable of the environment not used: " + v.Why, name})
		case Warned:
			notes = append(notes, Note{true, "variable of the environment in effect: " + v.Why, name})
		}
	}
	return append(notes, keepInside(inside)...)
}

// keepInside completes NO_PROXY. Machines of the cluster, pods and services have
// addresses, now and after a join, so no address is asked through a proxy.
func keepInside(inside []string) (notes []Note) {
	proxies := map[string][]string{} // the variables that name a host
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		if value := os.Getenv(name); value != "" {
			proxies[hostOf(value)] = append(proxies[hostOf(value)], name)
		}
	}
	if len(proxies) == 0 {
		return nil
	}
	all := withoutProxy(os.Getenv, inside)
	for _, name := range []string{"NO_PROXY", "no_proxy"} { // Go prefers the first, client-go too
		os.Setenv(name, all)
	}
	for host, names := range proxies {
		notes = append(notes, Note{false, "proxy " + host + " of the environment: asked for names outside the cluster only, never for an address", strings.Join(names, ",")})
	}
	slices.SortFunc(notes, func(a, b Note) int { return strings.Compare(a.Name, b.Name) })
	return notes
}

// withoutProxy completes the value of NO_PROXY among variables.
func withoutProxy(get func(name string) string, inside []string) string {
	all := append([]string{"0.0.0.0/0", "::/0", "localhost", ".svc", ".cluster.local"}, inside...)
	if present := cmp.Or(get("NO_PROXY"), get("no_proxy")); present != "" {
		all = append([]string{present}, all...)
	}
	return strings.Join(all, ",")
}

// ofProcess are variables that are passed on, but are about one process, its memory or its
// terminal.
var ofProcess = []string{"JOURNAL_STREAM", "GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GOTRACEBACK", "TMPDIR", "HOME", "PATH", "NO_COLOR", "TERM"}

// Handed returns, of the variables of a kthwd, NAME=VALUE each, those that the programs need
// when they run without it, in the order of the alphabet. NO_PROXY is completed as Take does.
func Handed(environ, inside []string) (all []string) {
	values := map[string]string{}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		values[name] = value
	}
	proxy := false
	for name, value := range values {
		v, known := Of(name)
		if !known || v.Action != Passed || slices.Contains(ofProcess, name) {
			continue
		}
		all = append(all, name+"="+value)
		proxy = proxy || strings.HasSuffix(strings.ToUpper(name), "_PROXY")
	}
	if proxy {
		direct := withoutProxy(func(name string) string { return values[name] }, inside)
		all = append(all, "NO_PROXY="+direct, "no_proxy="+direct)
	}
	slices.Sort(all)
	return all
}

// hostOf returns the host of a proxy, without the user and password that may be in it.
func hostOf(proxy string) string {
	for _, form := range []string{proxy, "http://" + proxy} {
		if u, err := url.Parse(form); err == nil && u.Host != "" {
			return fmt.Sprintf("%.100s", strings.ToValidUTF8(u.Host, "?"))
		}
	}
	return "that is no URL"
}
