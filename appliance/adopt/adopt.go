// Package adopt turns the control plane that found.Read finds on a machine into the configuration
// of a kthwd that goes on with the same data.
//
//	plan := adopt.New(ctx, found.Read(ctx, o), adopt.Options{})
//	err := adopt.Text(w, plan)
//	err = errors.Join(plan.Problems...)   // none: the plan can be carried out
//	data := plan.File
//
// A plan compares command lines: the program's, read by upstream's own flags, and kthwd's. It
// also reads etcd's data, certificates and keys, and checks the configuration as a start would. It
// writes nothing and changes nothing, and etcd's data stay where they are.
package adopt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/klog/v2"

	"kthwd/appliance/advice"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/environment"
	"kthwd/appliance/found"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/text"
)

// Options is what the machine does not say.
type Options struct {
	DataDir  string // of kthwd; "" means the directory of the API server's CA if that is called ca.pem, else the default
	EtcdDir  string // the copy of etcd's data to use; "" means the data themselves
	Was      string // version of Kubernetes that served the data; "" asks the program
	Versions func(ctx context.Context, exe string) (string, error)
}

// The verdicts on a flag.
const (
	Key        = "key"        // becomes a key of kthwd.yaml
	File       = "file"       // becomes a line of files in kthwd.yaml
	Same       = "same"       // equals kthwd's own
	Passed     = "passed"     // becomes a pass-through argument
	Translated = "translated" // an old word, which becomes a pass-through argument
	Dropped    = "dropped"    // kthwd does without it
	Refused    = "refused"    // kthwd cannot do it
)

// Line is the verdict on one flag.
type Line struct {
	Flag    string `json:"flag"`
	Verdict string `json:"verdict"`
	Becomes string `json:"becomes,omitempty"` // what it is in kthwd.yaml
	Why     string `json:"why,omitempty"`
}

// ProgramPlan is what becomes of one command line.
type ProgramPlan struct {
	Name  string   `json:"program"`
	From  string   `json:"from"`
	Lines []Line   `json:"flags"`
	Adds  []string `json:"adds"` // flags that kthwd sets and the program did not have
}

// Plan is what becomes of the control plane.
type Plan struct {
	Programs []ProgramPlan `json:"programs"`
	Checked  []string      `json:"checked"`         // facts, each with its evidence
	Notes    []string      `json:"notes,omitempty"` // what else a person should know
	File     []byte        `json:"-"`               // kthwd.yaml
	Stop     []string      `json:"stop"`            // commands that stop what runs, in their order
	EtcdDir  string        `json:"etcdDataDir"`     // where etcd's data are
	WAL      string        `json:"-"`               // directory of etcd's log; "" means the one beside the database
	Problems []error       `json:"-"`               // each with advice
}

// planner makes a plan.
type planner struct {
	Plan
	o       Options
	m       *found.Machine
	program map[string]found.Program
	args    map[string][]program.Arg // as the programs read them
	keys    map[string]string        // of kthwd.yaml, as YAML
	order   []string                 // of keys
	files   map[string]string        // outside the data directory
	pass    map[string][]string      // pass-through arguments
	cfg     config.Controller
}

// New makes a plan. What is wrong is in its Problems, all at once.
func New(ctx context.Context, m *found.Machine, o Options) *Plan {
	klog.SetLogger(cmdline.DiscardLogger)
	p := &planner{o: o, m: m, program: map[string]found.Program{}, args: map[string][]program.Arg{}, keys: map[string]string{}, files: map[string]string{}, pass: map[string][]string{}}
	p.Notes, p.Problems = m.Notes, slices.Clone(m.Problems)
	p.read()
	if len(p.Problems) > 0 {
		p.apart(ctx)
		return &p.Plan
	}
	p.chooseKeys()
	p.placeFiles()
	p.data(ctx)
	p.compare()
	p.nginx()
	p.stops()
	if p.Plan.EtcdDir != "" {
		p.render()
		p.check()
	}
	if len(p.Problems) > 0 {
		p.File = nil
	}
	return &p.Plan
}

// apart checks what needs no other program than its own, so that one run names all that is in the way.
func (p *planner) apart(ctx context.Context) {
	if _, is := p.program[program.APIServer]; is {
		p.kubernetesVersion(ctx)
	}
	if dir := p.path(program.Etcd, "data-dir"); filepath.IsAbs(dir) {
		p.Plan.EtcdDir, p.WAL = dir, p.path(program.Etcd, "wal-dir")
		p.backend()
	}
}

func (p *planner) refuse(err error, hint string) {
	p.Problems = append(p.Problems, advice.With(err, hint))
}

func (p *planner) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

func (p *planner) checked(format string, args ...any) {
	p.Checked = append(p.Checked, fmt.Sprintf(format, args...))
}

// read reads the command lines as the programs do.
func (p *planner) read() {
	for _, prog := range p.m.Programs {
		args, err := parse(prog.Name, prog.Args)
		if err == nil && prog.Name == program.Etcd {
			args, err = fromEnvironment(args, prog.Env)
		}
		if err != nil {
			p.refuse(fmt.Errorf("%s, %s: %w", prog.Name, prog.From, err), "correct the command line")
			continue
		}
		p.program[prog.Name], p.args[prog.Name] = prog, args
		p.environment(prog)
	}
	if servers := p.value(program.APIServer, "etcd-servers"); servers != "" && !p.ownEtcd(servers) {
		p.refuse(fmt.Errorf("etcd is elsewhere: kube-apiserver uses %s, and kthwd's API server uses the member beside it", servers),
			"run this where an etcd of the cluster runs beside an API server; or make a member of this machine first: etcdctl member add")
		return
	}
	for _, name := range p.m.Missing {
		p.refuse(fmt.Errorf("%s: no process, no static pod and no unit of it is here", name),
			"run this on a controller of the cluster; --root names the root of another file system, --from the kind of description")
	}
	if len(p.m.Missing) == 0 && has(p.args[program.Etcd], "config-file") {
		p.refuse(fmt.Errorf("etcd reads its settings from %s, which has its own names for them", p.value(program.Etcd, "config-file")),
			"write them as flags into etcd's command line; the names are those of etcd --help")
	}
}

// environment names the variables of a program that its code reads. Their values may be secrets.
func (p *planner) environment(prog found.Program) {
	var names []string
	for _, v := range environment.Handed(prog.Env, nil) {
		if name, _, _ := strings.Cut(v, "="); slices.ContainsFunc(prog.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			names = append(names, name)
		}
	}
	if names = slices.Compact(names); len(names) > 0 {
		p.note("%s, %s, has %s in its environment, and kthwd.yaml has no variables: set them where kthwd is started", prog.Name, prog.From, strings.Join(names, ", "))
	}
}

// ownEtcd reports whether one of the API server's etcds is that of this machine.
func (p *planner) ownEtcd(servers string) bool {
	if _, here := p.program[program.Etcd]; !here && !slices.Contains(p.m.Missing, program.Etcd) {
		return true // another problem of etcd is reported
	}
	var own []string
	for _, key := range []string{"advertise-client-urls", "listen-client-urls", "initial-advertise-peer-urls", "listen-peer-urls"} {
		for _, u := range urls(p.value(program.Etcd, key)) {
			own = append(own, u.Hostname())
		}
	}
	for _, u := range urls(servers) {
		ip := net.ParseIP(u.Hostname())
		local := u.Scheme == "unix" || u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
		if _, here := p.program[program.Etcd]; here && (local || slices.Contains(own, u.Hostname())) {
			return true
		}
	}
	return false
}

func urls(list string) (all []*url.URL) {
	for _, s := range strings.Split(list, ",") {
		if u, err := url.Parse(strings.TrimSpace(s)); err == nil && s != "" {
			all = append(all, u)
		}
	}
	return all
}

// value is that of a flag, under its name of today or an older one.
func (p *planner) value(name, key string) string {
	if v := program.Value(p.args[name], key); v != "" {
		return v
	}
	today, _ := cmdline.Translate(name, p.args[name])
	return program.Value(today, key)
}

// path is the place on this machine of a file that a program names.
func (p *planner) path(name, key string) string {
	v := p.value(name, key)
	if v == "" {
		return ""
	}
	return filepath.Clean(p.program[name].Path(v))
}

// setKey sets a key of kthwd.yaml that differs from its default.
func (p *planner) setKey(key, value string) {
	if _, is := p.keys[key]; !is {
		p.order = append(p.order, key)
	}
	p.keys[key] = value
}

// chooseKeys fills the settings from the flags that are keys of kthwd.yaml.
func (p *planner) chooseKeys() {
	c := config.Default().Controller
	p.setKey("role", config.RoleController)
	ca := p.path(program.APIServer, "client-ca-file")
	switch {
	case p.o.DataDir != "":
		c.DataDir = p.o.DataDir
	case filepath.Base(ca) == filepath.Base(pki.Layout{}.CA()):
		c.DataDir = filepath.Dir(ca)
	}
	p.setKey("data-dir", quote(c.DataDir))
	word := func(name, flag, key string, into *string, absent string) {
		v := p.value(name, flag)
		if v == "" {
			v = absent
		}
		if v != "" {
			*into = v
			p.setKey(key, quote(v))
		}
	}
	port := func(name, flag, key string, into *int) {
		if v := p.value(name, flag); v != "" && v != "0" {
			p.setPort(key, v, name+" --"+flag, into)
		}
	}
	word(program.Etcd, "name", "name", &c.Name, "default")
	word(program.APIServer, "bind-address", "bind-address", &c.BindAddress, "0.0.0.0")
	word(program.APIServer, "service-cluster-ip-range", "service-cluster-ip-range", &c.ServiceClusterIPRange, "10.0.0.0/24") // options.go: DefaultServiceIPCIDR
	word(program.ControllerManager, "cluster-cidr", "cluster-cidr", &c.ClusterCIDR, "")
	port(program.APIServer, "secure-port", "secure-port", &c.SecurePort)
	port(program.ControllerManager, "secure-port", "controller-manager-port", &c.ControllerManagerPort)
	port(program.Scheduler, "secure-port", "scheduler-port", &c.SchedulerPort)
	peer := ""
	if peers := urls(p.value(program.Etcd, "initial-advertise-peer-urls")); len(peers) > 0 {
		peer = peers[0].Hostname()
		if port := peers[0].Port(); port != "" {
			p.setPort("etcd-peer-port", port, "etcd --initial-advertise-peer-urls", &c.EtcdPeerPort)
		}
	}
	client := p.value(program.Etcd, "advertise-client-urls")
	if client == "" {
		client = p.value(program.Etcd, "listen-client-urls")
	}
	for _, u := range urls(client) {
		if u.Port() != "" {
			p.setPort("etcd-client-port", u.Port(), "etcd --advertise-client-urls", &c.EtcdClientPort)
			break
		}
	}
	if net.ParseIP(peer) == nil {
		peer = ""
	}
	word(program.APIServer, "advertise-address", "advertise-address", &c.AdvertiseAddress, peer)
	if dir := p.path(program.Etcd, "data-dir"); filepath.IsAbs(dir) {
		c.EtcdDataDir = dir
	} else {
		p.refuse(fmt.Errorf("etcd, %s: --data-dir does not say where its data are", p.program[program.Etcd].From), "give etcd's command line an absolute --data-dir")
	}
	p.Plan.EtcdDir, p.WAL = c.EtcdDataDir, p.path(program.Etcd, "wal-dir")
	used := c.EtcdDataDir
	if p.o.EtcdDir != "" {
		used = p.o.EtcdDir
	}
	p.setKey("etcd-data-dir", quote(used))
	p.cfg = c
}

func (p *planner) setPort(key, value, flag string, into *int) {
	n, err := strconv.Atoi(value)
	if err != nil {
		p.refuse(fmt.Errorf("%s: %q is no port", flag, value), "correct the command line")
		return
	}
	if *into != n {
		*into = n
		p.setKey(key, strconv.Itoa(n))
	}
}

// render writes kthwd.yaml.
func (p *planner) render() {
	var b strings.Builder
	var from []string
	for _, prog := range p.m.Programs {
		from = append(from, prog.Name+" of "+prog.From)
	}
	fmt.Fprintf(&b, "# Made by kthwd adopt: %s.\n# kthwd explain shows each flag that the programs get, with its origin.\n", text.Line(strings.Join(from, ", ")))
	for _, key := range p.order {
		fmt.Fprintf(&b, "%s: %s\n", key, p.keys[key])
	}
	if len(p.files) > 0 {
		b.WriteString("files:\n")
		for _, name := range pki.Movable() {
			if path, is := p.files[name]; is {
				fmt.Fprintf(&b, "  %s: %s\n", name, quote(path))
			}
		}
	}
	for _, name := range found.Names() {
		if len(p.pass[name]) == 0 {
			continue
		}
		fmt.Fprintf(&b, "%s-arg:\n", name)
		for _, a := range p.pass[name] {
			fmt.Fprintf(&b, "- %s\n", quote(a))
		}
	}
	p.File = []byte(b.String())
}

// quote returns a value as YAML; it needs quotes where it could mean something else.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-=+", r))
	}) && !strings.HasPrefix(s, "-") && strings.ContainsAny(s, "/=abcdefghijklmnopqrstuvwxyz") && s != "true" && s != "false" && s != "null" {
		return s
	}
	return strconv.QuoteToGraphic(s)
}

// check checks the configuration as a start would.
func (p *planner) check() {
	l, err := config.Parse("kthwd.yaml", p.File)
	if err != nil {
		for _, e := range advice.Lines(err) {
			hint := "the plan has the flag that this comes from: change it, or name another --data-dir"
			if problem, is := errors.AsType[*config.Problem](e); is && problem.Hint != "" {
				hint = problem.Hint
			}
			p.refuse(e, hint)
		}
		return
	}
	c := l.Config.Controller
	if p.o.EtcdDir != "" { // not made yet
		c.EtcdDataDir = p.Plan.EtcdDir
	}
	if err := datadir.Owned(c.Layout()); err != nil {
		p.Problems = append(p.Problems, err)
	}
	plan, err := pki.NewPlan(c.Layout(), commands.Spec(c))
	if err != nil {
		p.Problems = append(p.Problems, advice.Lines(errors.Join(err, commands.CheckWords(c)))...)
		return
	}
	lines, err := commands.Check(c, plan)
	if err != nil {
		p.Problems = append(p.Problems, advice.Lines(err)...)
		return
	}
	for _, w := range plan.Report.Warnings {
		p.note("%s", w)
	}
	for _, w := range lines.Warnings {
		p.note("%s", w)
	}
	p.checked("the certificates and keys in use belong together, and the programs accept the configuration; kthwd makes %d files that are missing in %s", len(plan.Files()), c.DataDir)
	p.checked("service account tokens: issuer %s, signed with %s", program.Value(lines.Args[program.APIServer], "service-account-issuer"), program.Value(lines.Args[program.APIServer], "service-account-signing-key-file"))
}

// nginx becomes the health bridge; a load balancer is a process of its own.
func (p *planner) nginx() {
	switch h := p.m.Health; {
	case h == nil:
		p.setKey("health-address", `""`)
		p.note("no nginx answers for the API server's health here, so kthwd's health bridge stays off (health-address)")
	default:
		p.setKey("health-address", quote(h.Listen))
		if h.Host != "" {
			p.setKey("health-server-name", quote(h.Host))
		}
		p.note("nginx, %s: kthwd's health bridge takes its place", h.From)
	}
	for _, s := range p.m.Streams {
		line := "kthwd --role=lb"
		for _, l := range s.Listen {
			line += " --listen=" + text.ShellWord(l)
		}
		for _, b := range s.Backends {
			line += " --backend=" + text.ShellWord(b)
		}
		p.note("nginx, %s, is a load balancer, and can stay; in its place: %s", s.From, line)
	}
}

// stops lists the commands that stop what kthwd replaces.
func (p *planner) stops() {
	systemctl := func(verb, unit string) {
		if n := len(p.Stop); n > 0 && strings.HasPrefix(p.Stop[n-1], "systemctl "+verb+" ") {
			p.Stop[n-1] += " " + unit
			return
		}
		p.Stop = append(p.Stop, "systemctl "+verb+" "+unit)
	}
	for _, prog := range slices.Backward(p.m.Programs) {
		unit := text.ShellWord(strings.TrimSuffix(filepath.Base(prog.From), ".service"))
		switch {
		case strings.HasPrefix(prog.From, "/run/systemd/transient/"), strings.HasPrefix(prog.From, "/run/systemd/generator"):
			systemctl("stop", unit) // none of these can be disabled
		case strings.HasSuffix(prog.From, ".service"):
			systemctl("disable --now", unit)
		case prog.Kind == found.FromManifests:
			p.Stop = append(p.Stop, "mv "+text.ShellWord(prog.From)+" "+filepath.Dir(filepath.Dir(prog.From))+"/")
		default:
			p.Stop = append(p.Stop, "kill "+strings.TrimPrefix(prog.From, "process ")+"   # "+prog.Name+"; keep it from starting again")
		}
	}
	if p.m.Health != nil {
		p.note("port %s is nginx's until its server is taken out or nginx is stopped", p.m.Health.Listen)
	}
}

// sameContent reports whether two files have the same bytes.
func sameContent(a, b string) bool {
	x, err := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	return err == nil && err2 == nil && string(x) == string(y)
}
