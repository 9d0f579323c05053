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

// The roles of a kthwd process. RoleAll marks settings that every role has.
const (
	RoleController = "controller"
	RoleLB         = "lb"
	RoleAll        = "all"
)

// setting is a flag and the key of the file with the same name. The variable that
// value points to holds the default when the setting is bound.
type setting struct {
	name  string
	role  string
	group string
	arg   string // stands for the value in the usage text
	help  string // what it does, and with which other settings; the usage text adds the default
	value any    // *string, *int, *bool, *time.Duration, *commaList or *repeated
}

// commaList is a list whose elements contain no comma: --x=a,b equals --x=a --x=b.
type commaList []string

// repeated is a list whose flag is repeated for each element.
type repeated []string

// The groups of the usage text and of docs/configuration.md, in order.
const (
	groupProcess  = "Process"
	groupFiles    = "Files"
	groupMachine  = "This machine"
	groupPorts    = "Ports and listeners"
	groupCluster  = "Cluster"
	groupBackup   = "Backup and upkeep"
	groupPrograms = "Passed to the programs"
	groupLB       = "Load balancer"
)

var groups = []string{groupProcess, groupFiles, groupMachine, groupPorts, groupCluster, groupBackup, groupPrograms, groupLB}

// settings returns the table of all settings, bound to the fields of l.
func (l *Loader) settings() []setting {
	c, k, b := &l.Config, &l.Config.Controller, &l.Config.LB
	return []setting{
		{"role", RoleAll, groupProcess, "ROLE", "Role of this process: controller, lb, or both separated by a comma. Required to run kthwd; the verbs need none.", (*commaList)(&c.Role)},
		{"config", RoleAll, groupProcess, "FILE", "YAML file with these names as keys. Flags override it, and a relative path in it starts from its directory. Without this flag " + DefaultFile + " is read if it exists; --config= reads no file.", &l.file},
		{"log-format", RoleAll, groupProcess, "FORMAT", "Format of the log: text or json. On a terminal, text is shorter and coloured.", &c.LogFormat},
		{"log-level", RoleAll, groupProcess, "LEVEL", "Level of the log: error, warn, info, debug or a number n, which shows upstream's lines of V(n-1) and below. LEVEL is for all components, COMPONENT=LEVEL for one; repeatable, later values win. kthwd log-level changes it at run time.", (*commaList)(&c.LogLevel)},
		{"metrics-address", RoleAll, groupProcess, "ADDRESS:PORT", "Address that serves metrics, status and the status page. A non-loopback address requires --metrics-web-config or --metrics-insecure. Empty disables it.", &c.MetricsAddress},
		{"metrics-web-config", RoleAll, groupProcess, "FILE", "Web configuration of the Prometheus exporter toolkit for --metrics-address: TLS, client certificates, basic auth. kthwd reads it again while it runs.", &c.MetricsWeb},
		{"metrics-insecure", RoleAll, groupProcess, "", "Serve --metrics-address in plain HTTP to every client that can reach it, on other machines too.", &c.MetricsOpen},
		{"metrics-pprof", RoleAll, groupProcess, "", "Serve profiles at /debug/pprof/ of --metrics-address. They show every client of that address, trusted or not, what the process does.", &c.MetricsPprof},
		{"allow-debugger", RoleAll, groupProcess, "", "Let other processes of kthwd's user read its memory and attach a debugger, and let the kernel write core dumps, which contain the keys. Root may attach without it.", &c.Debugger},

		{"data-dir", RoleController, groupFiles, "DIR", "Directory of certificates, keys and kubeconfigs under the tutorial's names; created if it is missing.", &k.DataDir},
		{"etcd-data-dir", RoleController, groupFiles, "DIR", "Directory of etcd's own data. Empty means etcd below --data-dir.", &k.EtcdDataDir},
		{"files", RoleController, groupFiles, "NAME=FILE", "Place of a file that is not in --data-dir, by the name that it would have there: ca.pem=/etc/kubernetes/pki/ca.crt. In the file it may be a map. kthwd reads such a file and never makes one; kthwd adopt writes these lines; repeatable.", (*commaList)(&k.Files)},

		{"name", RoleController, groupMachine, "NAME", "Name of this controller, as etcd member and as lease holder. Empty means the host name.", &k.Name},
		{"bind-address", RoleController, groupMachine, "ADDRESS", "Address on which the API server listens; 0.0.0.0 or :: means all.", &k.BindAddress},
		{"advertise-address", RoleController, groupMachine, "ADDRESS", "Address at which other machines reach this one. Empty means --bind-address if that is a single address, otherwise the source address of the default route. It becomes a name in kubernetes.pem.", &k.AdvertiseAddress},
		{"subject-alt-name", RoleController, groupMachine, "NAME", "Additional name or address for a kubernetes.pem made here, such as the load balancer's; repeatable. An existing kubernetes.pem is not changed.", (*commaList)(&k.SubjectAltNames)},

		{"secure-port", RoleController, groupPorts, "PORT", "Port of the API server, on --bind-address.", &k.SecurePort},
		{"etcd-client-port", RoleController, groupPorts, "PORT", "Port of etcd for etcdctl and other clients; requires a client certificate.", &k.EtcdClientPort},
		{"etcd-peer-port", RoleController, groupPorts, "PORT", "Port of etcd for the other controllers; requires a client certificate.", &k.EtcdPeerPort},
		{"controller-manager-port", RoleController, groupPorts, "PORT", "Port of kube-controller-manager; kubectl get componentstatuses queries only the default.", &k.ControllerManagerPort},
		{"scheduler-port", RoleController, groupPorts, "PORT", "Port of kube-scheduler; kubectl get componentstatuses queries only the default.", &k.SchedulerPort},
		{"join-port", RoleController, groupPorts, "PORT", "Port on --advertise-address that is open while a token of kthwd member add is valid; the same on all controllers.", &k.JoinPort},
		{"health-address", RoleController, groupPorts, "ADDRESS:PORT", "Address of the plain HTTP health bridge, which answers /healthz for load balancers. Empty disables it.", &k.HealthAddress},
		{"health-server-name", RoleController, groupPorts, "HOST", "The only Host that the health bridge answers, such as kubernetes.default.svc.cluster.local. Empty means any.", &k.HealthServerName},

		{"initial-cluster", RoleController, groupCluster, "NAME=ADDRESS", "The controllers with which the cluster begins, the same list on each, this one included with its --name and --advertise-address. Empty means this one alone. Once etcd's data lists members, that list is used instead.", (*commaList)(&k.InitialCluster)},
		{"initial-cluster-state", RoleController, groupCluster, "STATE", "new when --initial-cluster begins a cluster; existing when it names a cluster that has added this controller, as kthwd join writes it. Ignored once etcd has data.", &k.InitialClusterState},
		{"service-cluster-ip-range", RoleController, groupCluster, "CIDR", "Range of service addresses, or two separated by a comma for dual stack. Its first address becomes a name in kubernetes.pem. Must not overlap --cluster-cidr.", &k.ServiceClusterIPRange},
		{"cluster-cidr", RoleController, groupCluster, "CIDR", "Range of pod addresses, or two separated by a comma for dual stack. Must not overlap --service-cluster-ip-range.", &k.ClusterCIDR},

		{"backup-dir", RoleController, groupBackup, "DIR", "Directory of the archives of kthwd backup, on another disk than etcd's data if there is one. Required by --backup-every.", &k.BackupDir},
		{"backup-every", RoleController, groupBackup, "DURATION", "Time from one backup to the next, such as 6h. One controller makes it for the cluster, in a process of its own, and verifies it by restoring it. 0 makes none.", &k.BackupEvery},
		{"backup-keep", RoleController, groupBackup, "N", "How many archives of the cluster stay in --backup-dir after each backup of the schedule. The newest one that is whole always stays.", &k.BackupKeep},
		{"backup-recipient", RoleController, groupBackup, "RECIPIENT", "age recipient (age1…, or a file with one a line) for which the archives are encrypted; repeatable. Without one, private keys and the encryption configuration are left out.", (*commaList)(&k.BackupRecipients)},
		{"backup-hook", RoleController, groupBackup, "FILE", "Program that is run with the path of each new archive of the schedule, for at most 10 minutes, for example to copy it to another machine. Its failure is logged and counted.", &k.BackupHook},
		{"copy-before-upgrade", RoleController, groupBackup, "", "Before the first start of a newer minor of etcd or Kubernetes, copy etcd's data and the files of the controller to kept in the data directory, and open a copy of them. The only way back from such a start.", &k.UpgradeCopy},
		{"space-window", RoleController, groupBackup, "HH:MM-HH:MM", "Time of the day, by this machine's clock, in which kthwd makes room in etcd's databases by itself, as kthwd etcd space --fix does, when a quarter of one is free pages. Empty means never.", &k.SpaceWindow},

		{"profile", RoleController, groupPrograms, "PROFILE", "Which flags the programs get: guide keeps what the guide names; cis sets what the CIS benchmark and the STIG want in its place, such as ports on loopback, no alpha APIs and Pod Security. It can be changed on a running cluster, one controller after the other.", &k.Profile},
		{"tracing-endpoint", RoleController, groupPrograms, "HOST:PORT", "OpenTelemetry collector to which etcd and kube-apiserver send traces, one request in a hundred, by OTLP over gRPC without TLS. Empty sends none.", &k.TracingEndpoint},
		{"etcd-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag for etcd; overrides kthwd's own, or takes it out: KEY-; repeatable.", (*repeated)(&k.EtcdArgs)},
		{"kube-apiserver-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag for kube-apiserver; overrides kthwd's own, or takes it out: KEY-; repeatable.", (*repeated)(&k.APIServerArgs)},
		{"kube-controller-manager-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag for kube-controller-manager; overrides kthwd's own, or takes it out: KEY-; repeatable.", (*repeated)(&k.ControllerManagerArgs)},
		{"kube-scheduler-arg", RoleController, groupPrograms, "KEY=VALUE", "Flag for kube-scheduler; overrides kthwd's own, or takes it out: KEY-; repeatable.", (*repeated)(&k.SchedulerArgs)},

		{"listen", RoleLB, groupLB, "ADDRESS:PORT", "Address to which clients connect. Without ADDRESS it means all addresses; 0.0.0.0 is all of IPv4 only, [::] all of IPv6 only. The option accept-proxy may follow, see --accept-proxy-from; repeatable.", (*repeated)(&b.Listen)},
		{"freebind", RoleLB, groupLB, "", "Listen on addresses that this machine does not have yet, such as one that keepalived brings.", &b.Freebind},
		{"backend", RoleLB, groupLB, "HOST:PORT", "An API server behind the load balancer. A name stands for all its addresses, which are followed while kthwd runs; a name such as _https._tcp.example.com for its SRV records. Options may follow: weight N (0 to 256) and backup; repeatable.", (*repeated)(&b.Backends)},
		{"check", RoleLB, groupLB, "KIND", "How backends are checked: https requests --check-path over TLS, tcp connects, none relies on failed connections of clients.", &b.Check},
		{"check-path", RoleLB, groupLB, "PATH", "Path that --check=https requests. Status 200 means ready, any other status not ready, no answer dead.", &b.CheckPath},
		{"check-interval", RoleLB, groupLB, "DURATION", "Time from one check of a backend to the next; shorter while its state is in doubt.", &b.CheckInterval},
		{"check-timeout", RoleLB, groupLB, "DURATION", "Time limit of one check: connection, TLS and answer.", &b.CheckTimeout},
		{"check-fall", RoleLB, groupLB, "N", "Failed checks in a row after which a backend is no longer ready.", &b.CheckFall},
		{"check-rise", RoleLB, groupLB, "N", "Passed checks in a row after which a backend is ready again.", &b.CheckRise},
		{"backend-ca", RoleLB, groupLB, "FILE", "CA that verifies the certificates of the backends, such as the cluster's ca.pem. Empty skips the verification, and status says unverified.", &b.BackendCA},
		{"backend-server-name", RoleLB, groupLB, "NAME", "Name or address that the certificates of the backends must contain. Empty means the host of each --backend.", &b.BackendName},
		{"check-client-certificate", RoleLB, groupLB, "FILE", "Client certificate for checks, for API servers that refuse anonymous requests; goes with --check-client-key.", &b.CheckCert},
		{"check-client-key", RoleLB, groupLB, "FILE", "Key of --check-client-certificate.", &b.CheckKey},
		{"balance", RoleLB, groupLB, "ALGORITHM", "How a backend is chosen: least-connections, round-robin, source (by a hash of the client's address) or first (the first ready backend).", &b.Balance},
		{"cut", RoleLB, groupLB, "WHICH", "Connections that are cut once their backend is dead and another one is ready: dead (all, unless the backend still delivers something), unreachable (only if it accepts no connection) or never.", &b.Cut},
		{"slow-start", RoleLB, groupLB, "DURATION", "How long a backend that is ready again gets only a growing share of connections; 0 disables it.", &b.SlowStart},
		{"connect-timeout", RoleLB, groupLB, "DURATION", "Time limit of one attempt to connect to a backend.", &b.ConnectTimeout},
		{"hedge-after", RoleLB, groupLB, "DURATION", "Time after which a second backend is tried beside a slow one; 0 disables it.", &b.HedgeAfter},
		{"connect-budget", RoleLB, groupLB, "DURATION", "Time limit of all attempts for one client; after it the client is held.", &b.ConnectBudget},
		{"hold-timeout", RoleLB, groupLB, "DURATION", "How long a client is held when no backend answers; 0 closes it at once.", &b.HoldTimeout},
		{"max-held", RoleLB, groupLB, "N", "Clients that may be held at the same time.", &b.MaxHeld},
		{"first-byte-timeout", RoleLB, groupLB, "DURATION", "Time after which a client that sends nothing is closed; no backend is contacted for it.", &b.FirstByteTimeout},
		{"half-close-timeout", RoleLB, groupLB, "DURATION", "How long a connection may carry no data once one side has ended; there is no other idle timeout.", &b.HalfCloseTimeout},
		{"max-connections", RoleLB, groupLB, "N", "Connections at the same time; 0 means as many as the limit of file descriptors allows.", &b.MaxConnections},
		{"max-connections-per-source", RoleLB, groupLB, "N", "Connections at the same time from one address; 0 means no limit.", &b.MaxPerSource},
		{"source", RoleLB, groupLB, "ADDRESS", "Address of this machine from which backends are connected to. Several take turns, for more connections than one address has ports; repeatable.", (*repeated)(&b.Sources)},
		{"shutdown-delay", RoleLB, groupLB, "DURATION", "How long clients are still accepted after SIGTERM, while /readyz returns 503.", &b.ShutdownDelay},
		{"drain-timeout", RoleLB, groupLB, "DURATION", "How long connections may continue after their backend is removed or kthwd begins to stop.", &b.DrainTimeout},
		{"proxy-protocol", RoleLB, groupLB, "VERSION", "PROXY protocol header sent to backends: off, v1 or v2. kube-apiserver does not understand it.", &b.ProxyProtocol},
		{"accept-proxy-from", RoleLB, groupLB, "ADDRESS", "Address or network of a proxy in front, such as 10.0.1.5 or 10.0.1.0/28. Its connections must begin with a PROXY protocol header, v1 or v2, which names the client: on each --listen with the option accept-proxy or, where none has it, on all. Any other header is a client's data; repeatable.", (*repeated)(&b.AcceptProxyFrom)},
		{"metrics-backends", RoleLB, groupLB, "WHICH", "Backends whose metrics are all their own: each, none but a few (sum), or each up to 10 backends (auto). A backend has some 110 series of its own; without, 5 and a share in those with the label backend=\"all\".", &b.Metrics},
		{"access-log", RoleLB, groupLB, "FILE", "File that receives one line of JSON for each connection; empty writes none.", &b.AccessLog},
		{"upgrade-socket", RoleLB, groupLB, "PATH", "Unix socket on which a new kthwd takes over listeners and connections; @NAME is an abstract socket. Empty means one named after --listen.", &b.UpgradeSocket},
		{"status-socket", RoleLB, groupLB, "PATH", "Unix socket on which kthwd status queries a load balancer without a controller beside it. Only kthwd's user can open its directory. Empty disables it; the default is also disabled when its directory cannot be created.", &c.StatusSocket},
		{"discovery-kubeconfig", RoleLB, groupLB, "FILE", "Kubeconfig with which the load balancer follows the EndpointSlices of default/kubernetes to find its backends; those of --backend are then the last resort.", &b.DiscoveryKubeconfig},
		{"discovery-cache", RoleLB, groupLB, "FILE", "File that keeps the last list of --discovery-kubeconfig across restarts.", &b.DiscoveryCache},
	}
}

// bind adds the flag of a setting to fs. The present value becomes its default.
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

// Usage returns the usage text of the flags of the roles, in groups, width characters
// wide. Without a role it has all flags.
func (l *Loader) Usage(width int, roles ...string) string {
	var b strings.Builder
	for _, group := range groups {
		fs := pflag.NewFlagSet(group, pflag.ContinueOnError)
		fs.SortFlags = false
		of := ""
		for _, s := range l.table {
			if s.group != group || !s.of(roles) {
				continue
			}
			fs.AddFlag(l.fs.Lookup(s.name))
			if s.role != RoleAll && len(roles) != 1 {
				of = " (--role=" + s.role + ")"
			}
		}
		if fs.HasFlags() {
			fmt.Fprintf(&b, "%s%s:\n%s\n", group, of, FlagUsage(fs, width))
		}
	}
	return b.String()
}

// FlagUsage returns the usage text of a command's flags. When a flag's usage begins
// with a word in back quotes, that word stands for the flag's value.
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

// Values lists the values that a flag accepts, for shell completion. It returns nil
// for a flag that accepts any text.
func Values(name string) []string {
	switch name {
	case "role":
		return []string{RoleController, RoleLB, RoleController + "," + RoleLB}
	case "profile":
		return []string{ProfileGuide, ProfileCIS}
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
	case "cut":
		return []string{lb.CutDead, lb.CutUnreachable, lb.CutNever}
	case "metrics-backends":
		return []string{lb.MetricsAuto, lb.MetricsEach, lb.MetricsSum}
	case "proxy-protocol":
		return []string{lb.ProxyOff, lb.ProxyV1, lb.ProxyV2}
	}
	return nil
}

// nearest returns the setting whose name is closest to a misspelled one, or "".
func (l *Loader) nearest(name string) string {
	name = strings.ToLower(strings.ReplaceAll(strings.TrimLeft(name, "-"), "_", "-"))
	var names []string
	for _, s := range l.table {
		names = append(names, s.name)
	}
	return Nearest(name, names)
}

// Nearest returns the name that a misspelled one most likely meant, or "".
func Nearest(name string, names []string) string {
	best, distance := "", 1+max(2, len(name)/4)
	for _, n := range names {
		if d := editDistance(name, n); d < distance {
			best, distance = n, d
		}
	}
	return best
}

// editDistance is the Levenshtein distance.
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

// Names lists the settings of the given roles, RoleAll included, in the order of
// the table. Without a role it lists every setting.
func (l *Loader) Names(roles ...string) []string {
	var names []string
	for _, s := range l.table {
		if s.of(roles) {
			names = append(names, s.name)
		}
	}
	return names
}

// of reports whether one of the roles has the setting. Without a role it is true.
func (s setting) of(roles []string) bool {
	return len(roles) == 0 || s.role == RoleAll || slices.Contains(roles, s.role)
}
