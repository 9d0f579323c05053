package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"kthwd/appliance/logging"
	"kthwd/lb"
)

// DefaultFile is the configuration file that is read if it exists and --config
// was not given.
const DefaultFile = "/etc/kthwd/kthwd.yaml"

// The roles of a kthwd process. All marks what belongs to each of them.
const (
	RoleController = "controller"
	RoleLB         = "lb"
	RoleAll        = "all"
)

// setting is one thing that can be set: a flag, and a key of the file by the
// same name. Its default is what value points to when it is bound.
type setting struct {
	name  string
	role  string
	group string
	arg   string // stands for the value in the usage text
	help  string // one sentence, with its interplay; the default is added
	value any    // *string, *int, *bool, *time.Duration, *commaList or *repeated
}

// commaList is a list whose elements have no commas: --x=a,b and --x=a --x=b are the same.
type commaList []string

// repeated is a list whose flag is given once for each element.
type repeated []string

// The groups of the usage text and of docs/configuration.md, in order.
const (
	groupProcess  = "Process"
	groupFiles    = "Files"
	groupMachine  = "This machine"
	groupPorts    = "Ports and listeners"
	groupCluster  = "Cluster"
	groupPrograms = "Passed to the programs"
	groupLB       = "Load balancer"
)

var groups = []string{groupProcess, groupFiles, groupMachine, groupPorts, groupCluster, groupPrograms, groupLB}

// settings is the table of all flags, bound to the fields of l.
func (l *Loader) settings() []setting {
	c, k, b := &l.Config, &l.Config.Controller, &l.Config.LB
	return []setting{
		{"role", RoleAll, groupProcess, "ROLE", "What this process is: controller, lb, or both with a comma. Required to run; the verbs need none.", (*commaList)(&c.Role)},
		{"config", RoleAll, groupProcess, "FILE", "YAML file with these names as keys; flags win over it, and relative paths in it are meant from its directory. Without this flag " + DefaultFile + " is read if it exists; --config= reads none.", &l.file},
		{"log-format", RoleAll, groupProcess, "FORMAT", "Form of the log: text or json. Text is shorter and coloured on a terminal.", &c.LogFormat},
		{"log-level", RoleAll, groupProcess, "LEVEL", "What is logged: error, warn, info, debug or a number n, which shows upstream's lines of V(n-1) and below, for all or as COMPONENT=LEVEL for one; repeatable, later ones win. Changed at run time with kthwd log-level.", (*commaList)(&c.LogLevel)},
		{"metrics-address", RoleAll, groupProcess, "ADDRESS:PORT", "Where metrics, status and the status page are served; other than on loopback it wants --metrics-web-config, or --metrics-insecure. Empty switches it off.", &c.MetricsAddress},
		{"metrics-web-config", RoleAll, groupProcess, "FILE", "Web configuration of the Prometheus exporter toolkit for --metrics-address: TLS, client certificates, basic auth; read again while kthwd runs.", &c.MetricsWeb},
		{"metrics-insecure", RoleAll, groupProcess, "", "Serve --metrics-address in plain HTTP to whoever reaches it, other machines too.", &c.MetricsOpen},
		{"metrics-pprof", RoleAll, groupProcess, "", "Serve profiles at /debug/pprof/ of --metrics-address. They show what the process does, also to whom nobody trusts.", &c.MetricsPprof},

		{"data-dir", RoleController, groupFiles, "DIR", "Directory of certificates, keys and kubeconfigs under the tutorial's names; made if it is missing.", &k.DataDir},
		{"etcd-data-dir", RoleController, groupFiles, "DIR", "Directory of etcd's own data; empty means etcd below --data-dir.", &k.EtcdDataDir},

		{"name", RoleController, groupMachine, "NAME", "Name of this controller, as etcd member and as holder of leases; empty means the host name.", &k.Name},
		{"bind-address", RoleController, groupMachine, "ADDRESS", "Address the API server listens on; 0.0.0.0 or :: means all.", &k.BindAddress},
		{"advertise-address", RoleController, groupMachine, "ADDRESS", "Address other machines reach this one by; empty means --bind-address if that is one, else the address the default route leaves from. It becomes a name in kubernetes.pem.", &k.AdvertiseAddress},
		{"subject-alt-name", RoleController, groupMachine, "NAME", "Further name or address for a kubernetes.pem made here, such as the load balancer's; repeatable. A kubernetes.pem that exists is not changed.", (*commaList)(&k.SubjectAltNames)},

		{"secure-port", RoleController, groupPorts, "PORT", "Port of the API server, on --bind-address.", &k.SecurePort},
		{"etcd-client-port", RoleController, groupPorts, "PORT", "Port of etcd for etcdctl and other clients; asks for a client certificate.", &k.EtcdClientPort},
		{"etcd-peer-port", RoleController, groupPorts, "PORT", "Port of etcd for the other controllers; asks for a client certificate.", &k.EtcdPeerPort},
		{"controller-manager-port", RoleController, groupPorts, "PORT", "Port of kube-controller-manager; kubectl get componentstatuses asks the default one only.", &k.ControllerManagerPort},
		{"scheduler-port", RoleController, groupPorts, "PORT", "Port of kube-scheduler; kubectl get componentstatuses asks the default one only.", &k.SchedulerPort},
		{"join-port", RoleController, groupPorts, "PORT", "Port on --advertise-address that is open while a token of kthwd member add is good; the same on all controllers.", &k.JoinPort},
		{"health-address", RoleController, groupPorts, "ADDRESS:PORT", "Where the plain HTTP health bridge answers /healthz, for load balancers; empty switches it off.", &k.HealthAddress},
		{"health-server-name", RoleController, groupPorts, "HOST", "The only Host the health bridge answers, such as kubernetes.default.svc.cluster.local; empty means any.", &k.HealthServerName},

		{"initial-cluster", RoleController, groupCluster, "NAME=ADDRESS", "The controllers that the cluster begins with, the same list on each, this one included with its --name and --advertise-address; empty means this one alone. What etcd's data know of the members counts once there are any.", (*commaList)(&k.InitialCluster)},
		{"initial-cluster-state", RoleController, groupCluster, "STATE", "new when --initial-cluster begins a cluster; existing when it is one that has added this controller, as kthwd join writes it. It counts until etcd has data.", &k.InitialClusterState},
		{"service-cluster-ip-range", RoleController, groupCluster, "CIDR", "Range of service addresses, two with a comma for dual stack; its first address becomes a name in kubernetes.pem. Must not overlap --cluster-cidr.", &k.ServiceClusterIPRange},
		{"cluster-cidr", RoleController, groupCluster, "CIDR", "Range of pod addresses, two with a comma for dual stack. Must not overlap --service-cluster-ip-range.", &k.ClusterCIDR},

		{"tracing-endpoint", RoleController, groupPrograms, "HOST:PORT", "OpenTelemetry collector that etcd and kube-apiserver send traces to, one request in a hundred, by OTLP over gRPC without TLS; empty sends none.", &k.TracingEndpoint},
		{"etcd-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag of etcd; wins over kthwd's own; repeatable.", (*repeated)(&k.EtcdArgs)},
		{"kube-apiserver-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag of kube-apiserver; wins over kthwd's own; repeatable.", (*repeated)(&k.APIServerArgs)},
		{"kube-controller-manager-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag of kube-controller-manager; wins over kthwd's own; repeatable.", (*repeated)(&k.ControllerManagerArgs)},
		{"kube-scheduler-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag of kube-scheduler; wins over kthwd's own; repeatable.", (*repeated)(&k.SchedulerArgs)},

		{"listen", RoleLB, groupLB, "ADDRESS:PORT", "Where clients connect to; no address means all; repeatable.", (*repeated)(&b.Listen)},
		{"backend", RoleLB, groupLB, "HOST:PORT", "An API server behind the load balancer; a name is resolved again while kthwd runs; repeatable.", (*repeated)(&b.Backends)},
		{"check", RoleLB, groupLB, "KIND", "How backends are checked: https asks for --check-path over TLS, tcp connects, none goes by the connections of clients that fail.", &b.Check},
		{"check-path", RoleLB, groupLB, "PATH", "What --check=https asks for; status 200 is ready, another one is not ready, no answer is dead.", &b.CheckPath},
		{"check-interval", RoleLB, groupLB, "DURATION", "From one check of a backend to the next; shorter while its state is in doubt.", &b.CheckInterval},
		{"check-timeout", RoleLB, groupLB, "DURATION", "How long one check may take: connection, TLS and answer.", &b.CheckTimeout},
		{"check-fall", RoleLB, groupLB, "N", "Failed checks in a row that end a state of ready.", &b.CheckFall},
		{"check-rise", RoleLB, groupLB, "N", "Passed checks in a row that make a backend ready again.", &b.CheckRise},
		{"backend-ca", RoleLB, groupLB, "FILE", "CA that the certificates of the backends are checked against, such as the cluster's ca.pem; empty checks them against nothing, and status says unverified.", &b.BackendCA},
		{"backend-server-name", RoleLB, groupLB, "NAME", "Name or address that must be in the certificates of the backends; empty means the host of each --backend.", &b.BackendName},
		{"check-client-certificate", RoleLB, groupLB, "FILE", "Client certificate for checks, where the API servers refuse anonymous requests; goes with --check-client-key.", &b.CheckCert},
		{"check-client-key", RoleLB, groupLB, "FILE", "Key of --check-client-certificate.", &b.CheckKey},
		{"balance", RoleLB, groupLB, "ALGORITHM", "How a backend is chosen: least-connections, round-robin, source (by a hash of the client's address) or first (the first that is ready).", &b.Balance},
		{"slow-start", RoleLB, groupLB, "DURATION", "How long a backend that comes back gets a growing share only; 0 switches it off.", &b.SlowStart},
		{"connect-timeout", RoleLB, groupLB, "DURATION", "How long one attempt to connect to a backend may take.", &b.ConnectTimeout},
		{"hedge-after", RoleLB, groupLB, "DURATION", "After which a second backend is tried beside a slow one; 0 switches it off.", &b.HedgeAfter},
		{"connect-budget", RoleLB, groupLB, "DURATION", "How long all attempts for one client may take before it is held.", &b.ConnectBudget},
		{"hold-timeout", RoleLB, groupLB, "DURATION", "How long a client is held when no backend answers; 0 closes it at once.", &b.HoldTimeout},
		{"max-held", RoleLB, groupLB, "N", "Clients that may be held at one time.", &b.MaxHeld},
		{"first-byte-timeout", RoleLB, groupLB, "DURATION", "After which a client that sends nothing is closed; no backend hears of it.", &b.FirstByteTimeout},
		{"half-close-timeout", RoleLB, groupLB, "DURATION", "How long a connection may be without data once one side has ended; there is no other idle timeout.", &b.HalfCloseTimeout},
		{"max-connections", RoleLB, groupLB, "N", "Connections at one time; 0 means what the limit of descriptors allows.", &b.MaxConnections},
		{"max-connections-per-source", RoleLB, groupLB, "N", "Connections at one time from one address; 0 means no limit.", &b.MaxPerSource},
		{"shutdown-delay", RoleLB, groupLB, "DURATION", "How long, after SIGTERM, clients are still accepted while /readyz says 503.", &b.ShutdownDelay},
		{"drain-timeout", RoleLB, groupLB, "DURATION", "How long connections may go on when their backend is removed, or kthwd stops.", &b.DrainTimeout},
		{"proxy-protocol", RoleLB, groupLB, "VERSION", "PROXY protocol header sent to backends: off, v1 or v2. kube-apiserver does not understand it.", &b.ProxyProtocol},
		{"access-log", RoleLB, groupLB, "FILE", "File that gets one line of JSON for each connection; empty writes none.", &b.AccessLog},
		{"upgrade-socket", RoleLB, groupLB, "PATH", "Unix socket on which a new kthwd takes over listeners and connections; @NAME is an abstract one; empty means one named after --listen.", &b.UpgradeSocket},
		{"status-socket", RoleLB, groupLB, "PATH", "Unix socket on which kthwd status asks a load balancer that has no controller beside it; its directory is the user's alone. Empty switches it off; so does, for the default, a directory that cannot be made.", &c.StatusSocket},
		{"discovery-kubeconfig", RoleLB, groupLB, "FILE", "Kubeconfig with which the backends follow the EndpointSlices of default/kubernetes; --backend is where it starts.", &b.DiscoveryKubeconfig},
		{"discovery-cache", RoleLB, groupLB, "FILE", "File that keeps the last list of --discovery-kubeconfig over a restart.", &b.DiscoveryCache},
	}
}

// bind makes the flag of a setting; its default is the value at this moment.
func (s setting) bind(fs *pflag.FlagSet) {
	usage := "`" + s.arg + "` " + s.help
	switch v := s.value.(type) {
	case *string:
		fs.StringVar(v, s.name, *v, usage)
	case *int:
		fs.IntVar(v, s.name, *v, usage)
	case *bool:
		fs.BoolVar(v, s.name, *v, usage)
	case *time.Duration:
		fs.DurationVar(v, s.name, *v, usage)
	case *commaList:
		fs.StringSliceVar((*[]string)(v), s.name, *v, usage)
	case *repeated:
		fs.StringArrayVar((*[]string)(v), s.name, *v, usage)
	default:
		panic(fmt.Sprintf("setting %s: cannot bind %T", s.name, s.value))
	}
}

// Usage is the usage text of all flags, in groups, width characters wide.
func (l *Loader) Usage(width int) string {
	var b strings.Builder
	for _, group := range groups {
		fs := pflag.NewFlagSet(group, pflag.ContinueOnError)
		fs.SortFlags = false
		of := ""
		for _, s := range l.table {
			if s.group != group {
				continue
			}
			fs.AddFlag(l.fs.Lookup(s.name))
			if s.role != RoleAll {
				of = " (--role=" + s.role + ")"
			}
		}
		fmt.Fprintf(&b, "%s%s:\n%s\n", group, of, FlagUsage(fs, width))
	}
	return b.String()
}

// FlagUsage is the usage text of a command's flags. A flag whose usage begins
// with a word in back quotes has that word stand for its value.
func FlagUsage(fs *pflag.FlagSet, width int) string {
	const column = 36
	var b strings.Builder
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		arg, text := pflag.UnquoteUsage(f)
		text = strings.TrimPrefix(text, arg+" ")
		if v := strings.Trim(f.DefValue, "[]"); v != "" && v != "false" {
			text += " (default " + v + ")"
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if arg != "" {
			name += " " + arg
		}
		for i, line := range wrap(text, max(width-column, 30)) {
			switch {
			case i > 0:
				name = ""
			case len(name) > column-4:
				fmt.Fprintf(&b, "  %s\n", name)
				name = ""
			}
			fmt.Fprintf(&b, "  %-*s%s\n", column-2, name, line)
		}
	})
	return b.String()
}

func wrap(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// Values lists what the value of a flag may be, for shell completion; nil when
// it is free.
func Values(name string) []string {
	switch name {
	case "role":
		return []string{RoleController, RoleLB, RoleController + "," + RoleLB}
	case "initial-cluster-state":
		return []string{StateNew, StateExisting}
	case "log-format":
		return []string{logging.Text, logging.JSON}
	case "log-level":
		return []string{"error", "warn", "info", "debug"}
	case "check":
		return []string{lb.CheckHTTPS, lb.CheckTCP, lb.CheckNone}
	case "balance":
		return []string{lb.LeastConnections, lb.RoundRobin, lb.SourceHash, lb.FirstAlive}
	case "proxy-protocol":
		return []string{lb.ProxyOff, lb.ProxyV1, lb.ProxyV2}
	}
	return nil
}

// nearest is the setting a misspelled name most likely meant, or "".
func (l *Loader) nearest(name string) string {
	name = strings.ToLower(strings.ReplaceAll(strings.TrimLeft(name, "-"), "_", "-"))
	best, distance := "", 1+max(2, len(name)/4)
	for _, s := range l.table {
		if d := editDistance(name, s.name); d < distance {
			best, distance = s.name, d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Names lists the settings that one of the roles has, in the order of the
// table; those of all roles included. Without a role it lists all.
func (l *Loader) Names(roles ...string) []string {
	var names []string
	for _, s := range l.table {
		if s.of(roles) {
			names = append(names, s.name)
		}
	}
	return names
}

// of tells whether one of the roles has the setting.
func (s setting) of(roles []string) bool {
	return len(roles) == 0 || s.role == RoleAll || slices.Contains(roles, s.role)
}
