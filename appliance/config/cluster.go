package config

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/pki"
)

// Cluster describes the controllers of a new cluster and the load balancers in
// front of them. Shared holds the settings that all machines have in common.
type Cluster struct {
	Controllers []string // NAME=ADDRESS
	LBs         []string // addresses or names
	CAKey       []string // names of the controllers that receive the CA's key
	Dir         string   // directory that holds one directory for each machine
	Shared      Controller
}

// clusterHome is the directory below Cluster.Dir that holds the CA.
const clusterHome = "ca"

// FileName is the name of a machine's configuration file in its directory.
const FileName = "kthwd.yaml"

// Plan returns the cluster for pki.EnsureCluster to make. The error joins all
// *Problems; their keys are the flags of kthwd pki init.
func (c Cluster) Plan() (pki.Cluster, error) {
	members, problems := parseMembers("controllers", c.Controllers)
	v := &validator{problems: problems}
	v.cluster(c, members)
	for _, m := range members {
		part := &validator{}
		part.controller(c.controller(m))
		for _, p := range part.problems {
			if p.Key == "initial-cluster" {
				continue // it repeats --controllers
			}
			if !slices.ContainsFunc(v.problems, func(q *Problem) bool { return q.Error() == p.Error() }) {
				v.problems = append(v.problems, p)
			}
		}
	}
	if len(v.problems) > 0 {
		return pki.Cluster{}, joinProblems(v.problems)
	}
	return c.plan(members), nil
}

func (v *validator) cluster(c Cluster, members []Member) {
	if len(c.Controllers) == 0 {
		v.add("controllers", "is empty").Hint = "such as --controllers=c0=10.0.1.73,c1=10.0.1.35,c2=10.0.1.36"
	}
	if c.Dir == "" {
		v.problems = append(v.problems, &Problem{Text: "--out is missing: it names the directory that receives one directory for each machine", Hint: "such as --out=cluster"})
	}
	for _, m := range members {
		if m.Name == clusterHome || strings.HasPrefix(m.Name, "lb-") {
			v.add("controllers", "%s: the directory %s is reserved", m, m.Name).Hint = "choose another name"
		}
	}
	for i, lb := range c.LBs {
		if problem := unusableHost(lb); problem != "" {
			v.add("lb", "%q %s", lb, problem)
		}
		if slices.Contains(c.LBs[:i], lb) {
			v.add("lb", "%s is given twice", lb)
		}
		for _, m := range members {
			if m.Address == lb {
				v.add("lb", "%s is also the address of the controller %s", lb, m.Name).Hint =
					"here a load balancer needs its own machine; to run one beside a controller, set role and listen in the controller's file"
			}
		}
	}
	for _, name := range c.CAKey {
		if !slices.ContainsFunc(members, func(m Member) bool { return m.Name == name }) {
			v.add("with-ca-key", "%q is not a name in --controllers", name)
		}
	}
}

// unusableHost returns why clients cannot use a load balancer's address or name, or "".
func unusableHost(host string) string {
	switch problem := unusable(host); {
	case problem == "" || problem != notAnAddress:
		return problem
	case !aName().MatchString(host) || numeric.MatchString(host):
		return "is neither a name nor an IP address"
	}
	return ""
}

// numeric matches a mistyped address, which is never a name.
var numeric = regexp.MustCompile(`^[0-9.]+$`)

// Warnings lists settings that are allowed but probably a mistake, one line each.
func (c Cluster) Warnings() []string {
	lines := EvenWarning(len(c.Controllers))
	if n := len(c.CAKey); n > 0 && n < len(c.Controllers) {
		lines = append(lines, fmt.Sprintf("--with-ca-key %s: kube-controller-manager signs certificates only while it leads there; give the key to all controllers, or to none", strings.Join(c.CAKey, ",")))
	}
	return lines
}

// controller returns the configuration of one controller, as its file will have it.
func (c Cluster) controller(m Member) Controller {
	k := c.Shared
	k.Name, k.AdvertiseAddress, k.InitialCluster = m.Name, m.Address, c.Controllers
	k.DataDir = filepath.Join(c.Dir, m.Name)
	k.EtcdDataDir = k.Layout().Etcd()
	if isLoopback(m.Address) {
		k.BindAddress = m.Address // several on one machine
	}
	return k
}

func isLoopback(address string) bool {
	ip, err := netip.ParseAddr(address)
	return err == nil && ip.IsLoopback()
}

func (c Cluster) plan(members []Member) pki.Cluster {
	server := func(address string) string {
		return "https://" + net.JoinHostPort(address, strconv.Itoa(c.Shared.SecurePort))
	}
	out := pki.Cluster{Dir: filepath.Join(c.Dir, clusterHome), Spec: pki.Spec{ServiceIP: c.Shared.ServiceIP()}, Admin: server(members[0].Address)}
	if len(c.LBs) > 0 {
		out.Admin = server(c.LBs[0])
	}
	for _, m := range members {
		k := c.controller(m)
		out.Addresses = append(out.Addresses, m.Address)
		admin := server(m.Address)
		if len(c.LBs) > 0 {
			admin = out.Admin
		}
		out.Machines = append(out.Machines, pki.Machine{
			Dir: k.DataDir, Server: k.LocalServer(), Admin: admin, CAKey: slices.Contains(c.CAKey, m.Name),
			ConfigName: FileName, Config: controllerFile(k), Fits: fits(controllerFile(k)),
		})
	}
	for _, lb := range c.LBs {
		out.Machines = append(out.Machines, pki.Machine{
			Dir: filepath.Join(c.Dir, "lb-"+lb), ConfigName: FileName, Config: c.lbFile(lb, members), Fits: fits(c.lbFile(lb, members)),
		})
	}
	out.Addresses = unique(append(append(out.Addresses, c.LBs...), c.Shared.SubjectAltNames...))
	return out
}

// controllerFile returns the kthwd.yaml of a controller, for its data directory.
func controllerFile(c Controller) []byte { return writeController(c, ".") }

// JoinedFile returns the kthwd.yaml of a controller that joins: the file that kthwd
// pki init would write, and every setting that differs from its default.
func JoinedFile(c Config) []byte { return file(c, "As set when this controller joined.") }

// RestoredFile returns the kthwd.yaml of a controller that is restored from a backup.
func RestoredFile(c Config) []byte { return file(c, "As set in the backup, or when it was restored.") }

// file returns a kthwd.yaml with every setting of a controller that differs from its default.
func file(c Config, heading string) []byte {
	k := c.Controller
	b := bytes.NewBuffer(writeController(k, k.DataDir))
	said := NewLoader()
	if err := said.parseFile(FileName, b.Bytes()); err != nil {
		panic(err) // kthwd wrote it
	}
	is := NewLoader()
	is.Config = c
	if k.EtcdDataDir == (Controller{DataDir: k.DataDir}).Layout().Etcd() {
		is.Config.Controller.EtcdDataDir = ""
	}
	begun := false
	for i, s := range is.table {
		if s.role == RoleLB || s.name == "role" || s.name == "config" || s.yaml() == said.table[i].yaml() {
			continue
		}
		if !begun {
			fmt.Fprintln(b, "\n# "+heading)
			begun = true
		}
		fmt.Fprintf(b, "%s: %s\n", s.name, s.yaml())
	}
	return b.Bytes()
}

func writeController(c Controller, dataDir string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# The controller %[1]s. This directory is its data directory, wherever it is:
#   kthwd --config=kthwd.yaml
# kthwd config --config=kthwd.yaml shows every setting.
role: controller

# Relative paths start from this file's directory.
data-dir: %[3]s

# How the other machines know this one.
name: %[1]s
advertise-address: %[2]s
`, yamlText(c.Name), yamlText(c.AdvertiseAddress), yamlText(dataDir))
	if c.BindAddress != Default().Controller.BindAddress {
		fmt.Fprintf(&b, "bind-address: %s\n", yamlText(c.BindAddress))
	}
	fmt.Fprintf(&b, `
%s
initial-cluster: %s

# These are the same on each, too.
service-cluster-ip-range: %s
cluster-cidr: %s
`, beginning(c), yamlList(c.InitialCluster), yamlText(c.ServiceClusterIPRange), yamlText(c.ClusterCIDR))
	d := Default().Controller
	for _, port := range []struct {
		key     string
		is, was int
	}{{"secure-port", c.SecurePort, d.SecurePort}, {"etcd-peer-port", c.EtcdPeerPort, d.EtcdPeerPort}} {
		if port.is != port.was {
			fmt.Fprintf(&b, "%s: %d\n", port.key, port.is)
		}
	}
	if c.Profile != d.Profile {
		fmt.Fprintf(&b, "\n# Which flags the programs get: kthwd explain shows them.\nprofile: %s\n", yamlText(c.Profile))
	}
	fmt.Fprintf(&b, `
# Plain HTTP /healthz, for load balancers without TLS; "" disables it.
health-address: %s
`, yamlText(c.HealthAddress))
	return b.Bytes()
}

// beginning returns the lines that explain initial-cluster.
func beginning(c Controller) string {
	if c.InitialClusterState == StateExisting {
		return "# The controllers that were there when this one joined, and this one. At its first\n" +
			"# start it asks them for the members; after that, its data lists them.\ninitial-cluster-state: existing"
	}
	return "# All controllers that the cluster begins with: the same list on each."
}

// lbFile returns the kthwd.yaml of a load balancer.
func (c Cluster) lbFile(address string, members []Member) []byte {
	var backends []string
	for _, m := range members {
		backends = append(backends, net.JoinHostPort(m.Address, strconv.Itoa(c.Shared.SecurePort)))
	}
	host := ""
	if isLoopback(address) {
		host = address // several on one machine
	}
	listen := []string{net.JoinHostPort(host, strconv.Itoa(c.Shared.SecurePort))}
	if c.Shared.SecurePort == Default().Controller.SecurePort && host == "" {
		listen = Default().LB.Listen
	}
	return fmt.Appendf(nil, `# The load balancer %s. Nothing in this directory is secret.
#   kthwd --config=kthwd.yaml
# kthwd config --config=kthwd.yaml shows every setting.
role: lb
listen: %s

# The API server of each controller. A change here takes effect at once and closes
# no connection.
backend: %s

# Relative paths start from this file's directory.
backend-ca: ca.pem
`, address, yamlList(listen), yamlList(backends))
}

// agree lists the settings in which an existing file must equal the one that kthwd
// would write now. The owner of the file may change the others.
var agree = []string{"role", "name", "advertise-address", "initial-cluster", "service-cluster-ip-range", "cluster-cidr",
	"secure-port", "etcd-peer-port", "backend"}

// fits returns a function that compares an existing configuration file with want.
func fits(want []byte) func([]byte) string {
	return func(existing []byte) string {
		w, is := NewLoader(), NewLoader()
		if err := w.parseFile(FileName, want); err != nil {
			return err.Error()
		}
		if err := is.parseFile(FileName, existing); err != nil {
			return strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		var problems []string
		for i, s := range w.table {
			if slices.Contains(agree, s.name) && s.yaml() != is.table[i].yaml() {
				problems = append(problems, fmt.Sprintf("its %s is %s, want %s", s.name, is.table[i].yaml(), s.yaml()))
			}
		}
		return strings.Join(problems, "; ")
	}
}
