package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"kthwd/appliance/logging"
	"kthwd/appliance/paths"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
)

// Problem is one mistake in a configuration.
type Problem struct {
	Key    string // the setting; empty when the problem concerns no single one
	Text   string // what is wrong, beginning with the value
	Hint   string // what to do about it; may be empty
	Origin string // where the value was set: FILE:LINE, or one of the Origin constants; may be empty
}

// Error names the setting as it was set: "--secure-port 0 is not a port",
// or "kthwd.yaml:7: secure-port 0 is not a port".
func (p *Problem) Error() string {
	inFile := p.Origin != "" && p.Origin != OriginFlag && !strings.HasPrefix(p.Origin, OriginDefault)
	switch {
	case inFile && p.Key != "":
		return p.Origin + ": " + p.Key + " " + p.Text
	case inFile:
		return p.Origin + ": " + p.Text
	case p.Key != "":
		return "--" + p.Key + " " + p.Text
	default:
		return p.Text
	}
}

// joinProblems is errors.Join for problems. It returns nil when there are none.
func joinProblems(problems []*Problem) error {
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// Validate returns everything that is wrong with the configuration as joined
// *Problems, each with the origin of its value. Call it after Resolve.
func (l *Loader) Validate() error {
	return l.located(append(l.roleProblems(), l.Config.problems()...))
}

// ValidateController is Validate for a verb, which has no role. It checks only the
// controller's part.
func (l *Loader) ValidateController() error { return l.located(l.Config.parts(true, false)) }

// ValidateWithoutRole is Validate for a configuration without a role that is only
// shown. It checks the controller's part, and the load balancer's settings that the
// file or a flag sets.
func (l *Loader) ValidateWithoutRole() error {
	problems := l.Config.parts(true, false)
	for _, p := range lbProblems(l.Config.LB) {
		if l.IsSet(p.Key) {
			problems = append(problems, p)
		}
	}
	return l.located(problems)
}

func (l *Loader) located(problems []*Problem) error {
	for _, p := range problems {
		if p.Key != "" && p.Origin == "" {
			p.Origin = l.Origin(p.Key)
		}
	}
	return joinProblems(problems)
}

func (c Config) problems() []*Problem {
	v := &validator{}
	v.role(c.Role)
	if _, err := logging.New(nil, c.LogFormat, nil); err != nil || c.LogFormat != logging.Text && c.LogFormat != logging.JSON {
		v.add("log-format", "%q is not a format: want text or json", c.LogFormat)
	}
	for _, s := range c.LogLevel {
		if _, _, err := logging.ParseLevel(s); err != nil {
			v.add("log-level", "%s: %v", s, err)
		}
	}
	return append(v.problems, c.parts(c.Is(RoleController) || !c.Is(RoleLB), c.Is(RoleLB))...)
}

// parts checks the settings of the roles, and that no two listeners collide.
func (c Config) parts(controller, lb bool) []*Problem {
	v := &validator{}
	var listeners []listener
	if controller {
		listeners = v.controller(c.Controller)
	}
	if lb {
		v.problems = append(v.problems, lbProblems(c.LB)...)
		v.path("status-socket", c.StatusSocket)
		listeners = append(listeners, lbListeners(c.LB)...)
	}
	v.path("metrics-web-config", c.MetricsWeb)
	v.apart(v.addListener(listeners, "metrics-address", c.MetricsAddress))
	v.metrics(c)
	return v.problems
}

// metrics refuses to show the process to other machines unless that is intended.
func (v *validator) metrics(c Config) {
	host, _, problem := splitAddress(c.MetricsAddress)
	if c.MetricsAddress == "" || problem != "" || c.MetricsWeb != "" || c.MetricsOpen {
		return
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		v.add("metrics-address", "%s is reachable from other machines and serves plain HTTP", c.MetricsAddress).Hint =
			"set --metrics-web-config=FILE with TLS and client certificates, or --metrics-insecure if anyone may read it"
	}
}

func (v *validator) controller(c Controller) []listener {
	v.paths(c)
	v.machine(c)
	v.members(c)
	listeners := v.listeners(c)
	v.ranges(c)
	v.backup(c)
	if c.Profile != ProfileGuide && c.Profile != ProfileCIS {
		v.add("profile", "%q is no profile: want %s or %s", c.Profile, ProfileGuide, ProfileCIS)
	}
	v.tracing(c.TracingEndpoint)
	v.args("etcd-arg", c.EtcdArgs)
	v.args("kube-apiserver-arg", c.APIServerArgs)
	v.args("kube-controller-manager-arg", c.ControllerManagerArgs)
	v.args("kube-scheduler-arg", c.SchedulerArgs)
	return listeners
}

// shortestBackup is the least time from one backup to the next.
const shortestBackup = time.Minute

func (v *validator) backup(c Controller) {
	switch {
	case c.BackupEvery < 0 || c.BackupEvery > 0 && c.BackupEvery < shortestBackup:
		v.add("backup-every", "%v is too short: want %v or longer, or 0 for none", c.BackupEvery, shortestBackup).Hint = "such as 6h"
	case c.BackupEvery > 0 && c.BackupDir == "":
		v.add("backup-every", "is %v, but --backup-dir is empty", c.BackupEvery).Hint = "name a directory for the archives, on another disk than etcd's data"
	}
	if c.BackupKeep < 1 {
		v.add("backup-keep", "%d is too few: want 1 or more", c.BackupKeep)
	}
	for _, p := range []struct{ key, path string }{{"backup-dir", c.BackupDir}, {"backup-hook", c.BackupHook}} {
		if p.path != "" {
			v.path(p.key, p.path)
		}
	}
	if _, err := ParseWindow(c.SpaceWindow); err != nil {
		v.add("space-window", "%q %v", c.SpaceWindow, err).Hint = "such as 03:00-05:00"
	}
	for _, r := range c.BackupRecipients {
		if strings.Contains(r, "AGE-SECRET-KEY-") {
			v.add("backup-recipient", "is an identity, which is secret").Hint = "a recipient begins with age1; kthwd backup keygen prints it"
		}
	}
}

func (v *validator) tracing(endpoint string) {
	if endpoint == "" {
		return
	}
	host, port, err := net.SplitHostPort(endpoint)
	if n, bad := strconv.Atoi(port); err != nil || bad != nil || host == "" || n < 1 || n > 65535 || strings.ContainsAny(host, "/ \"'") {
		v.add("tracing-endpoint", "%q is not HOST:PORT", endpoint).Hint = "such as 127.0.0.1:4317, where an OpenTelemetry collector accepts OTLP over gRPC"
	}
}

// validator collects problems.
type validator struct{ problems []*Problem }

func (v *validator) add(key, format string, args ...any) *Problem {
	p := &Problem{Key: key, Text: fmt.Sprintf(format, args...)}
	v.problems = append(v.problems, p)
	return p
}

func (v *validator) role(roles []string) {
	if len(roles) == 0 {
		v.problems = append(v.problems, &Problem{Text: "no role given", Hint: "kthwd --role=controller runs a control plane, kthwd --role=lb a load balancer; kthwd --help lists the verbs, kthwd help ROLE the flags"})
	}
	for i, role := range roles {
		switch {
		case role != RoleController && role != RoleLB:
			p := v.add("role", "%q is not a role: want %s, %s", role, RoleController, RoleLB)
			if editDistance(role, RoleController) < 4 {
				p.Hint = didYouMean("--role=", RoleController)
			} else if editDistance(role, RoleLB) < 2 {
				p.Hint = didYouMean("--role=", RoleLB)
			}
		case slices.Contains(roles[:i], role):
			v.add("role", "%s is given twice", role)
		}
	}
}

// roleProblems refuses each setting that belongs to another role.
func (l *Loader) roleProblems() (problems []*Problem) {
	if !l.Config.Is(RoleController) && !l.Config.Is(RoleLB) {
		return nil // role has reported it
	}
	role := strings.Join(l.Config.Role, ",")
	for _, s := range l.table {
		if s.of(l.Config.Role) || !l.IsSet(s.name) {
			continue
		}
		problems = append(problems, &Problem{
			Key: s.name, Text: fmt.Sprintf("belongs to --role=%s; this process is --role=%s", s.role, role),
			Hint: fmt.Sprintf("remove it; kthwd config --role=%s lists the settings of this role", role),
		})
	}
	return problems
}

func (v *validator) paths(c Controller) {
	if c.DataDir == "" {
		v.add("data-dir", "is empty")
		return
	}
	if c.EtcdDataDir != "" && c.EtcdDataDir == c.DataDir {
		v.add("etcd-data-dir", "%s is also --data-dir", c.EtcdDataDir).Hint = "omit it to use etcd below the data directory"
	}
	v.path("data-dir", c.DataDir)
	v.files(c.Files)
	if c.EtcdDataDir != c.Layout().Etcd() || !strings.HasPrefix(c.EtcdDataDir, c.DataDir) {
		v.path("etcd-data-dir", c.EtcdDataDir)
	}
}

// files refuses what is no NAME=FILE of a file that kthwd would look for in its data directory.
func (v *validator) files(all []string) {
	seen := map[string]bool{}
	for _, f := range all {
		name, path, ok := strings.Cut(f, "=")
		switch {
		case !ok:
			v.add("files", "%.80q has no place", f).Hint = "write NAME=FILE, such as ca.pem=/etc/kubernetes/pki/ca.crt"
		case !slices.Contains(pki.Movable(), name):
			p := v.add("files", "%.80q is no file that may be elsewhere", name)
			if p.Hint = "these may be: " + strings.Join(pki.Movable(), ", "); Nearest(name, pki.Movable()) != "" {
				p.Hint = "did you mean " + Nearest(name, pki.Movable()) + "?"
			}
		case seen[name]:
			v.add("files", "has %s twice", name)
		case !filepath.IsAbs(path) || filepath.Clean(path) != path:
			v.add("files", "%.80q is no absolute path", path).Hint = "write the path of " + name + " from / on"
		default:
			v.path("files", path)
		}
		seen[name] = true
	}
}

// path refuses a path that cannot be used wherever kthwd and the programs show it.
func (v *validator) path(key, path string) {
	if problem := paths.Problem(path); problem != "" {
		v.add(key, "%.80q %s", path, problem).Hint = "choose another path"
	}
}

// keepsNoEndpoints reports whether the user's arguments let the service kubernetes have no
// endpoints.
func keepsNoEndpoints(apiServerArgs []string) bool {
	return slices.ContainsFunc(apiServerArgs, func(a string) bool {
		key, value := SplitArg(a)
		return strings.ReplaceAll(key, "_", "-") == "endpoint-reconciler-type" && value == "none"
	})
}

// aName matches host names and member names.
var aName = text.Pattern(`^[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,251}[a-zA-Z0-9])?$`)

func (v *validator) machine(c Controller) {
	if c.Name != "" && !aName().MatchString(c.Name) {
		v.add("name", "%q is not a name: want letters, digits, dots and dashes", c.Name)
	}
	if _, err := netip.ParseAddr(c.BindAddress); err != nil {
		v.add("bind-address", "%q is not an IP address", c.BindAddress).Hint = "0.0.0.0 listens on all addresses"
	}
	if c.AdvertiseAddress != "" {
		switch ip, err := netip.ParseAddr(c.AdvertiseAddress); {
		case err != nil:
			v.add("advertise-address", "%q is not an IP address", c.AdvertiseAddress)
		case ip.IsUnspecified() || ip.IsMulticast():
			v.add("advertise-address", "%s is not an address that other machines can reach", ip).Hint = "give the address of this machine"
		case ip.Zone() != "":
			v.add("advertise-address", "%s has a zone, which other machines cannot use", ip)
		case ip.IsLinkLocalUnicast() && !keepsNoEndpoints(c.APIServerArgs):
			// kube-apiserver does not start with it (pkg/controlplane/reconcilers/lease.go:ValidateIP).
			v.add("advertise-address", "%s is a link-local address, and the service kubernetes cannot have one", ip).Hint = "give another address of this machine; or let the service have none, with --kube-apiserver-arg=endpoint-reconciler-type=none"
		}
	}
	for _, name := range c.SubjectAltNames {
		if _, err := netip.ParseAddr(name); err != nil && !aName().MatchString(strings.TrimPrefix(name, "*.")) {
			v.add("subject-alt-name", "%q is neither a name nor an address", name)
		}
	}
	if c.HealthServerName != "" && !aName().MatchString(c.HealthServerName) {
		v.add("health-server-name", "%q is not a host name", c.HealthServerName)
	}
}

// listener is a port on which kthwd will listen, on each of hosts.
type listener struct {
	key     string
	hosts   []string
	port    int
	address string // as written, of a setting that may be given several times
	family  bool   // 0.0.0.0 is all IPv4 addresses and [::] all IPv6 ones; otherwise each is both
}

// listeners checks each port of a controller.
func (v *validator) listeners(c Controller) []listener {
	here := []string{c.BindAddress, "127.0.0.1"}
	all := []listener{
		{key: "secure-port", hosts: []string{c.BindAddress}, port: c.SecurePort},
		{key: "etcd-client-port", hosts: append(here, c.AdvertiseAddress), port: c.EtcdClientPort},
		{key: "etcd-peer-port", hosts: append(here, c.AdvertiseAddress), port: c.EtcdPeerPort},
		{key: "controller-manager-port", hosts: here, port: c.ControllerManagerPort},
		{key: "scheduler-port", hosts: here, port: c.SchedulerPort},
		{key: "join-port", hosts: []string{c.AdvertiseAddress}, port: c.JoinPort},
	}
	for _, l := range all {
		if l.port < 1 || l.port > 65535 {
			v.add(l.key, "%d is not a port: want 1 to 65535", l.port)
		}
	}
	return v.addListener(all, "health-address", c.HealthAddress)
}

// apart refuses two listeners that share an address and a port.
func (v *validator) apart(all []listener) {
	for i, a := range all {
		for _, b := range all[:i] {
			if !a.meets(b) {
				continue
			}
			if a.key == b.key {
				v.add(a.key, "%s is part of %s, which is given as well", narrower(a, b), wider(a, b)).Hint = "an empty address is all addresses of both families, 0.0.0.0 all of IPv4, [::] all of IPv6"
				continue
			}
			p := v.add(a.key, "and --%s both use port %d", b.key, a.port)
			if a.key == "listen" && b.key == "secure-port" {
				p.Hint = "in one process with an API server, the load balancer needs another port or address, such as --listen=:443"
			}
		}
	}
}

func (v *validator) addListener(all []listener, key, address string) []listener {
	if address == "" {
		return all
	}
	host, port, problem := splitAddress(address)
	if problem != "" {
		v.add(key, "%q %s", address, problem).Hint = "want ADDRESS:PORT, such as 127.0.0.1:8080, or :8080 for all addresses"
		return all
	}
	return append(all, listener{key: key, hosts: []string{host}, port: port})
}

func splitAddress(address string) (host string, port int, problem string) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 {
		return "", 0, "has no port"
	}
	host, text := address[:i], address[i+1:]
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Sprintf("has the port %q: want 1 to 65535", text)
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		inner, bracketed = strings.CutSuffix(inner, "]")
	}
	switch ip, err := netip.ParseAddr(inner); {
	case host == "":
		return "", port, ""
	case host == "localhost":
		return "127.0.0.1", port, ""
	case err != nil:
		return "", 0, fmt.Sprintf("has %q in place of an IP address", host)
	case ip.Is6() != bracketed:
		return "", 0, "needs brackets around an IPv6 address, and only there"
	}
	return inner, port, ""
}

func (l listener) meets(other listener) bool {
	if l.port != other.port {
		return false
	}
	for _, a := range l.hosts {
		for _, b := range other.hosts {
			if a == b || l.covers(a, b) || other.covers(b, a) {
				return true
			}
		}
	}
	return false
}

// wider and narrower are the addresses of two listeners of one setting that meet.
func wider(a, b listener) string {
	if a.covers(a.hosts[0], b.hosts[0]) {
		return a.address
	}
	return b.address
}

func narrower(a, b listener) string {
	if wider(a, b) == a.address {
		return b.address
	}
	return a.address
}

// covers reports whether a listener on host also receives connections to other.
func (l listener) covers(host, other string) bool {
	if host == "" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsUnspecified() {
		return false
	}
	o, err := netip.ParseAddr(other)
	if l.family {
		return err == nil && o.Unmap().Is4() == ip.Is4()
	}
	return ip.Is6() || err != nil || o.Is4() || o.IsUnspecified()
}

// ranges checks the address ranges of the cluster, and that they do not overlap.
func (v *validator) ranges(c Controller) {
	service := v.parseRanges("service-cluster-ip-range", c.ServiceClusterIPRange)
	cluster := v.parseRanges("cluster-cidr", c.ClusterCIDR)
	for _, s := range service {
		for _, p := range cluster {
			if s.Overlaps(p) {
				v.add("service-cluster-ip-range", "%s overlaps --cluster-cidr %s", s, p).Hint =
					"services and pods need separate ranges; the defaults are " + Default().Controller.ServiceClusterIPRange + " and " + Default().Controller.ClusterCIDR
			}
		}
	}
	if ip, err := netip.ParseAddr(c.AdvertiseAddress); err == nil {
		v.outside(ip.Unmap(), "service-cluster-ip-range", service)
		v.outside(ip.Unmap(), "cluster-cidr", cluster)
	}
}

// outside refuses a range that contains this machine's address, which would then
// also belong to a service or a pod.
func (v *validator) outside(ip netip.Addr, key string, ranges []netip.Prefix) {
	for _, r := range ranges {
		if r.Contains(ip) {
			v.add(key, "%s contains --advertise-address %s", r, ip).Hint = "choose a range that contains no machine's address"
		}
	}
}

func (v *validator) parseRanges(key, text string) (ranges []netip.Prefix) {
	if text == "" {
		v.add(key, "is empty")
		return nil
	}
	for s := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			v.add(key, "%q is not a CIDR: want ADDRESS/BITS, such as 10.32.0.0/24", s)
			continue
		}
		ranges = append(ranges, p.Masked())
	}
	switch {
	case len(ranges) > 2:
		v.add(key, "%s has %d ranges: want one, or one each of IPv4 and IPv6", text, len(ranges))
	case len(ranges) == 2 && ranges[0].Addr().Is4() == ranges[1].Addr().Is4():
		v.add(key, "%s has two ranges of the same family: want one each of IPv4 and IPv6", text)
	}
	return ranges
}

var anArg = regexp.MustCompile(`^[a-zA-Z][-_.a-zA-Z0-9]*$`)

func (v *validator) args(key string, args []string) {
	for _, arg := range args {
		if name, _ := SplitArg(arg); !anArg.MatchString(name) {
			v.add(key, "%q is not KEY=VALUE", arg).Hint = "such as --" + key + "=v=4"
		}
	}
}

// SplitArg splits a pass-through argument: "v=4", "--v=4", or "profiling", which
// means "profiling=true". "authorization-mode-" takes a flag out; its value is "".
func SplitArg(arg string) (key, value string) {
	key, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	if !ok && !strings.HasSuffix(key, "-") {
		value = "true"
	}
	return key, value
}

// Warnings lists settings that are allowed but probably a mistake, one line each.
func (c Controller) Warnings() (lines []string) {
	if ip, err := netip.ParseAddr(c.AdvertiseAddress); err == nil && ip.IsLoopback() {
		lines = append(lines, fmt.Sprintf("--advertise-address %s is loopback: no other machine can reach this controller", ip))
	}
	lines = append(lines, EvenWarning(len(c.InitialCluster))...)
	d := Default().Controller
	if c.ControllerManagerPort != d.ControllerManagerPort || c.SchedulerPort != d.SchedulerPort {
		lines = append(lines, fmt.Sprintf("kubectl get componentstatuses queries only ports %d and %d; it reports a program on another port as unhealthy", d.ControllerManagerPort, d.SchedulerPort))
	}
	return lines
}
