package adopt

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"kthwd/appliance/cmdline"
	"kthwd/appliance/flagvalue"
	"kthwd/appliance/found"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
)

// keyOf are the flags that are keys of kthwd.yaml, by program.
var keyOf = map[string]map[string]string{
	program.Etcd: {
		"name": "name", "data-dir": "etcd-data-dir", "initial-advertise-peer-urls": "etcd-peer-port", "advertise-client-urls": "etcd-client-port",
	},
	program.APIServer: {
		"advertise-address": "advertise-address", "bind-address": "bind-address", "secure-port": "secure-port", "service-cluster-ip-range": "service-cluster-ip-range",
	},
	program.ControllerManager: {"secure-port": "controller-manager-port", "cluster-cidr": "cluster-cidr"},
	program.Scheduler:         {"secure-port": "scheduler-port"},
}

// droppedFlags are flags that kthwd does without, with the reason.
var droppedFlags = map[string]map[string]string{
	program.Etcd: {
		"initial-cluster": "etcd's data list the members", "initial-cluster-token": "etcd's data are there", "initial-cluster-state": "etcd's data are there",
		"listen-client-urls": "kthwd listens on its address, on loopback and on a socket, with TLS", "logger": "kthwd has one logger", "log-level": "set log-level: [etcd=LEVEL]", "log-outputs": "kthwd has one logger",
		"client-cert-auth": "kthwd's etcd always wants certificates", "peer-client-cert-auth": "kthwd's etcd always wants certificates",
	},
	program.APIServer: {
		"etcd-servers": "kthwd's API server uses the member beside it", "etcd-cafile": "kthwd's API server uses the member beside it",
		"etcd-certfile": "kthwd's API server uses the member beside it", "etcd-keyfile": "kthwd's API server uses the member beside it",
	},
	program.ControllerManager: {"leader-elect": "kthwd holds the lease", "service-cluster-ip-range": "the API server's is used"},
	program.Scheduler:         {"leader-elect": "kthwd holds the lease"},
}

// unasked are flags of kthwd's that stay out of a cluster that did not have them: nodes that worked
// would be refused, or APIs appear that nobody has asked for.
var unasked = map[string][]string{program.APIServer: {"kubelet-certificate-authority", "runtime-config"}}

// place is where the file of a name in the data directory comes from: the first of the flags
// that is set.
type place struct {
	name  string
	flags []program.Arg // Key is the program, Value the flag
}

func places() []place {
	l, api, kcm := pki.Layout{}, program.APIServer, program.ControllerManager
	return []place{
		{l.CA(), []program.Arg{{Key: api, Value: "client-ca-file"}}},
		{l.CAKey(), []program.Arg{{Key: kcm, Value: "cluster-signing-key-file"}}},
		{l.Cert(pki.NameKubernetes), []program.Arg{{Key: api, Value: "tls-cert-file"}}},
		{l.Key(pki.NameKubernetes), []program.Arg{{Key: api, Value: "tls-private-key-file"}}},
		{l.Cert(pki.NameServiceAccount), []program.Arg{{Key: api, Value: "service-account-key-file"}}},
		{l.Key(pki.NameServiceAccount), []program.Arg{{Key: api, Value: "service-account-signing-key-file"}, {Key: kcm, Value: "service-account-private-key-file"}}},
		{l.Cert(pki.NameFrontProxyCA), []program.Arg{{Key: api, Value: "requestheader-client-ca-file"}}},
		{l.Cert(pki.NameFrontProxyClient), []program.Arg{{Key: api, Value: "proxy-client-cert-file"}}},
		{l.Key(pki.NameFrontProxyClient), []program.Arg{{Key: api, Value: "proxy-client-key-file"}}},
		{l.EncryptionConfig(), []program.Arg{{Key: api, Value: "encryption-provider-config"}}},
		{l.AuditPolicy(), []program.Arg{{Key: api, Value: "audit-policy-file"}}},
		{l.Kubeconfig(pki.NameControllerManager), []program.Arg{{Key: kcm, Value: "kubeconfig"}}},
		{l.Kubeconfig(pki.NameScheduler), []program.Arg{{Key: program.Scheduler, Value: "kubeconfig"}}},
	}
}

// layout is that of the configuration so far.
func (p *planner) layout() pki.Layout {
	return pki.Layout{Dir: p.cfg.DataDir, EtcdDir: p.Plan.EtcdDir, Elsewhere: p.files}
}

// put says where the file of a name is.
func (p *planner) put(name, path string) {
	if path != "" && path != filepath.Join(p.cfg.DataDir, name) {
		p.files[name] = path
	}
}

// placeFiles finds the files that kthwd uses where they lie.
func (p *planner) placeFiles() {
	for _, pl := range places() {
		for _, f := range pl.flags {
			if path := p.path(f.Key, f.Value); path != "" {
				p.put(pl.name, path)
				break
			}
		}
	}
	l := pki.Layout{}
	if path := p.schedulerKubeconfig(); path != "" {
		p.put(l.Kubeconfig(pki.NameScheduler), path)
	}
	if len(program.Values(p.args[program.APIServer], "service-account-key-file")) > 1 { // passed through, all of them
		delete(p.files, l.Cert(pki.NameServiceAccount))
	}
	p.serverCertificate()
	p.etcdFiles()
	if p.value(program.APIServer, "encryption-provider-config") == "" {
		p.pass[program.APIServer] = append(p.pass[program.APIServer], "encryption-provider-config-")
		p.note("the API server encrypts no secrets, and goes on so: kube-apiserver-arg encryption-provider-config- in kthwd.yaml")
	}
}

// schedulerKubeconfig reads the kubeconfig out of kube-scheduler's own file.
func (p *planner) schedulerKubeconfig() string {
	file := p.path(program.Scheduler, "config")
	if file == "" {
		return ""
	}
	data, err := os.ReadFile(file)
	if err != nil {
		p.refuse(err, wayToFile(err))
		return ""
	}
	var c struct {
		ClientConnection struct {
			Kubeconfig string `yaml:"kubeconfig"`
		} `yaml:"clientConnection"`
	}
	if err := yaml.Unmarshal(data, &c); err != nil {
		p.refuse(fmt.Errorf("%s: not the expected YAML", file), "correct the file")
	}
	if c.ClientConnection.Kubeconfig == "" {
		return ""
	}
	return filepath.Clean(p.program[program.Scheduler].Path(c.ClientConnection.Kubeconfig))
}

func wayToFile(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return "run this as root"
	}
	return "bring the file back"
}

// serverCertificate leaves a certificate that only serves, as kubeadm's, to its old life: kthwd
// makes one that is a client's, too, with the same names.
func (p *planner) serverCertificate() {
	l := pki.Layout{}
	cert := leaf(p.path(program.APIServer, "tls-cert-file"))
	if cert == nil || len(cert.ExtKeyUsage) == 0 || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return
	}
	delete(p.files, l.Cert(pki.NameKubernetes))
	delete(p.files, l.Key(pki.NameKubernetes))
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	var quoted []string
	for _, n := range names {
		quoted = append(quoted, quote(n))
	}
	p.setKey("subject-alt-name", "["+strings.Join(quoted, ", ")+"]")
}

// leaf reads the first certificate of a file; nil if there is none.
func leaf(path string) *x509.Certificate {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			return cert
		}
	}
	return nil
}

// etcdFiles finds the CA of etcd's own, if it has one.
func (p *planner) etcdFiles() {
	l := pki.Layout{}
	ca := p.path(program.Etcd, "trusted-ca-file")
	cluster := p.layout().CA()
	if shared, err := pki.SharesCA(ca, cluster); ca == "" || ca == cluster || err == nil && shared {
		return
	}
	p.put(l.EtcdCA(), ca)
	p.put(l.Cert(pki.NameEtcd), p.path(program.Etcd, "cert-file"))
	p.put(l.Key(pki.NameEtcd), p.path(program.Etcd, "key-file"))
	for _, key := range []string{strings.TrimSuffix(ca, filepath.Ext(ca)) + ".key", strings.TrimSuffix(ca, filepath.Ext(ca)) + "-key.pem"} {
		if _, err := os.Stat(key); err == nil {
			p.put(l.EtcdCAKey(), key)
			break
		}
	}
}

// compare gives each flag its verdict, against the command lines that kthwd would have.
func (p *planner) compare() {
	l := p.layout()
	c := p.cfg
	c.Files = nil
	ours := map[string][]program.Arg{
		program.Etcd:              program.WithEtcdFiles(program.EtcdArgs(c, l, l.EtcdSocket()), pki.StageOf(l).Files(l)),
		program.APIServer:         program.APIServerArgs(c, l, l.EtcdSocket()),
		program.ControllerManager: program.ControllerManagerArgs(c, l),
		program.Scheduler:         program.SchedulerArgs(c, l),
	}
	for _, name := range found.Names() {
		pp := ProgramPlan{Name: name, From: p.program[name].From, Lines: []Line{}, Adds: []string{}}
		for _, a := range p.args[name] {
			line := p.verdict(name, a, ours[name])
			pp.Lines = append(pp.Lines, line)
			switch line.Verdict {
			case Passed, Translated:
				p.pass[name] = append(p.pass[name], strings.TrimPrefix(line.Becomes, name+"-arg: "))
			case Refused:
				p.refuse(fmt.Errorf("%s, %s: %s cannot be taken over: %s", name, pp.From, line.Flag, line.Why), "change or remove the flag, and restart the program, before kthwd adopts the cluster")
			}
		}
		today, _ := cmdline.Translate(name, p.args[name])
		for _, key := range unasked[name] {
			if !has(today, key) {
				p.pass[name] = append(p.pass[name], key+"-")
			}
		}
		for _, o := range ours[name] {
			if !has(today, o.Key) && !slices.Contains(pp.Adds, o.Key) && !slices.Contains(p.pass[name], o.Key+"-") {
				pp.Adds = append(pp.Adds, o.Key)
			}
		}
		p.Programs = append(p.Programs, pp)
	}
}

// verdict is what becomes of one flag.
func (p *planner) verdict(name string, a program.Arg, ours []program.Arg) Line {
	line := Line{Flag: a.String()}
	if key, is := keyOf[name][a.Key]; is {
		line.Verdict, line.Becomes = Key, key
		if value, set := p.keys[key]; set {
			line.Becomes += ": " + value
		} else {
			line.Verdict, line.Becomes, line.Why = Same, "", "kthwd's default "+key
		}
		return line
	}
	today, warnings := cmdline.Translate(name, []program.Arg{a})
	switch {
	case len(today) == 0:
		line.Verdict, line.Why = Dropped, reason(warnings)
		return line
	case len(warnings) > 0:
		line.Why = reason(warnings)
		after := p.today(name, today[0], ours, line)
		if after.Verdict == Passed {
			after.Verdict = Translated
		}
		return after
	}
	return p.today(name, a, ours, line)
}

// reason is the last clause of a translation's warning.
func reason(warnings []string) string {
	if len(warnings) == 0 {
		return ""
	}
	return warnings[0][strings.LastIndex(warnings[0], ": ")+2:]
}

// today is the verdict on a flag that today's program may have.
func (p *planner) today(name string, a program.Arg, ours []program.Arg, line Line) Line {
	own := program.Values(ours, a.Key)
	if why, is := droppedFlags[name][a.Key]; is {
		line.Verdict, line.Why = Dropped, why
		return line
	}
	if verdict, why := p.inCode(name, a); verdict != "" {
		line.Verdict, line.Why = verdict, why
		return line
	}
	if isFile, done := p.fileVerdict(name, a, own, &line); done || isFile {
		return line
	}
	if a.Key == "v" {
		if n, err := strconv.Atoi(a.Value); err == nil && n <= 2 {
			line.Verdict, line.Why = Dropped, "kthwd's log: log-level: ["+name+"=debug] shows such lines"
			return line
		}
	}
	if slices.ContainsFunc(own, func(v string) bool { return equal(name, a.Key, v, a.Value) }) {
		line.Verdict = Same
		return line
	}
	if u := urls(a.Value); name == program.Etcd && strings.HasSuffix(a.Key, "-urls") && len(own) > 0 && len(u) > 0 && u[0].Scheme == "http" {
		line.Verdict, line.Why = Dropped, "kthwd's etcd speaks TLS"
		return line
	}
	if instead, is := program.Owned[name][a.Key]; is {
		line.Verdict, line.Why = Refused, "kthwd sets this flag itself: "+instead
		return line
	}
	all, err := flagvalue.Of(name)
	f, isKnown := all[a.Key]
	switch {
	case err == nil && a.Key != "v" && !isKnown:
		line.Verdict, line.Why = Refused, name+" has no such flag in this version"
		return line
	case isKnown && f.Set(a.Value) != nil:
		line.Verdict, line.Why = Refused, name+" does not take this value in this version"
		return line
	}
	a.Value = p.program[name].Path(a.Value)
	line.Verdict, line.Becomes = Passed, name+"-arg: "+a.Key+"="+a.Value
	if len(own) > 0 {
		line.Why = cmp.Or(line.Why, "kthwd's own: "+strings.Join(own, ","))
	}
	return line
}

// inCode is the verdict on a flag that kthwd eject adds, because kthwd needs none for the same, or
// writes the file itself: a cluster that comes back is the same as before.
func (p *planner) inCode(name string, a program.Arg) (verdict, why string) {
	switch {
	case name == program.APIServer && a.Key == "admission-control-config-file":
		data, err := os.ReadFile(p.path(name, a.Key))
		if err == nil && string(data) == string(program.AdmissionConfig(p.cfg)) {
			return Same, "kthwd writes this file itself"
		}
	case name != program.Etcd:
	case a.Key == "wal-dir" && p.o.EtcdDir != "":
		return Dropped, "the copy has the log beside the database, and that of before stays as it is"
	case a.Key == "enable-grpc-gateway" && a.Value == "false" && has(p.args[name], "client-cert-allowed-hostname"):
		return Dropped, "kthwd serves etcd's HTTP API itself, which etcd cannot while its port accepts certain names only"
	case p.admitsControllers(a):
		return Dropped, "kthwd's etcd accepts controllers only"
	}
	return "", ""
}

// admitsControllers reports whether a flag of etcd names those that kthwd's etcd accepts without
// it. A certificate that cannot be read names nobody, and is another problem of the plan.
func (p *planner) admitsControllers(a program.Arg) bool {
	peers, _ := pki.Controllers(p.path(program.Etcd, "peer-cert-file"))
	var names []string
	switch a.Key {
	case "client-cert-allowed-hostname":
		names, _ = pki.ServiceNames(p.path(program.Etcd, "cert-file"))
	case "peer-cert-allowed-cn":
		names = peers.CommonNames
	case "peer-cert-allowed-hostname":
		names = peers.Hosts
	}
	allowed := strings.Split(a.Value, ",")
	slices.Sort(allowed)
	return len(names) > 0 && slices.Equal(allowed, slices.Sorted(slices.Values(names)))
}

// fileVerdict is the verdict on a flag in whose place kthwd names a file of its layout.
func (p *planner) fileVerdict(name string, a program.Arg, own []string, line *Line) (isFile, done bool) {
	if name == program.Scheduler && a.Key == "config" && p.path(name, "config") == p.layout().SchedulerConfig() {
		line.Verdict = Same
		return true, true
	}
	path := filepath.Clean(p.program[name].Path(a.Value))
	if len(own) != 1 || !filepath.IsAbs(own[0]) || !filepath.IsAbs(path) {
		return false, false
	}
	if a.Key == "service-account-key-file" && len(program.Values(p.args[name], a.Key)) > 1 {
		line.Verdict, line.Becomes = Passed, name+"-arg: "+a.Key+"="+path
		return true, true
	}
	for short, at := range p.files {
		if at == path && own[0] == at {
			line.Verdict, line.Becomes = File, "files: "+short
			return true, true
		}
	}
	switch {
	case own[0] == path:
		line.Verdict = Same
	case sameContent(path, own[0]):
		line.Verdict, line.Why = Same, "a copy of "+own[0]
	case name == program.Etcd:
		line.Verdict, line.Why = Dropped, own[0]+" takes its place"
	case strings.HasPrefix(a.Key, "tls-") && name == program.APIServer:
		line.Verdict, line.Becomes, line.Why = Key, "subject-alt-name", "it is no client's certificate: kthwd makes "+own[0]+" with its names"
	default:
		return false, false
	}
	return true, true
}
