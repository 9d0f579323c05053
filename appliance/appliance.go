// Package appliance runs the Kubernetes control plane "the hard way" as
// goroutines of one process: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler, with the flags, files and users that the guide gives them by
// hand, the HTTP health bridge and the RBAC seed.
//
//	health bridge, status ─► etcd ─► kube-apiserver ─► { rbac seed, kube-controller-manager, kube-scheduler }
//
// An arrow means: starts when the left one is ready, stops before it. Run is the
// wiring, to be read as a list. Each program is one file with one Component;
// args.go is the guide's unit files as data.
//
// What upstream's code would do to its host is caught here: a lost lease ends
// one term of one program and not the process (leader.go); a missing quorum is
// a state in which everything waits (etcd.go, apiserver.go); a fatal log line
// becomes an orderly stop (exit.go). Only the caller exits the process.
//
// Feature gates, metrics registries and the klog logger are process-wide, so
// there is one Run at a time in a process.
package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/server/v3/embed"
	rbacclient "k8s.io/client-go/kubernetes/typed/rbac/v1"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"kthwd/appliance/config"
	"kthwd/appliance/logging"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/health"
	"kthwd/rbacseed"
)

// Options are what the caller of Run provides.
type Options struct {
	Logs     *logging.Logs                     // where everything is logged
	Version  string                            // kthwd's own, for status
	Metrics  Metrics                           // where metrics and status are served
	Started  time.Time                         // when the process began; zero means now
	OnReady  func(timeline []supervise.Status) // called once, when everything is ready; may be nil
	OnChange func(ready bool, reason string)   // called after each change of the state record; may be nil
	OnWired  func(*Pulse)                      // called once, before the first component starts; may be nil
	Beside   *Beside                           // another role of the process; may be nil
}

// Metrics is where metrics and status are served.
type Metrics struct {
	Address string // empty for none
	Web     string // web configuration file; empty for plain HTTP
	Pprof   bool   // profiles beside them
}

// Beside is another role in a controller's process: its components, and what
// the status says of it.
type Beside struct {
	Add        func(g *supervise.Group, status *supervise.Node) // adds them, after status and before etcd
	Report     func(*status.Report)                             // completes the report
	Collectors []prometheus.Collector
}

// Stop budgets: what a component may take from its cancellation to its return.
// They add up along the chain to about 43 s, the bound of every stop by default.
const (
	stopControllers = 10 * time.Second // upstream's own --controller-shutdown-timeout
	stopAPIServer   = 15 * time.Second // drain of short requests and watches, removal from Endpoints; and the shutdown delay
	stopEtcd        = 10 * time.Second // 5 s + 2 elections for its clients, then the hand-over
	stopBridges     = 5 * time.Second
)

// Run runs a controller until ctx ends or a component fails. It blocks, and
// returns nil only after a clean stop that was asked for.
func Run(ctx context.Context, cfg config.Controller, o Options) error {
	if o.Started.IsZero() {
		o.Started = time.Now()
	}
	settled := tuneProcess(o.Logs.Logger("kthwd"))
	p, err := newPlant(ctx, cfg, o)
	if err != nil {
		return err
	}
	defer p.close()
	g, pulse, err := p.wire()
	if err != nil {
		return err
	}
	if o.OnWired != nil {
		o.OnWired(pulse)
	}
	restore := catchExits(g, o.Logs.Logger("kthwd"))
	defer restore()
	watching, stopWatching := context.WithCancel(context.Background())
	defer stopWatching()
	go announce(watching, g, o, settled)
	go p.events.run(watching)
	return g.Run(ctx)
}

// plant is everything that must be right before the first component starts.
type plant struct {
	cfg      config.Controller
	o        Options
	layout   pki.Layout
	log      *slog.Logger
	lock     *os.File
	socket   *socketDir
	args     map[string][]arg
	programs *programs
	identity string
	record   memberRecord // as written last by this process; etcd's goroutine has it
	events   *eventWriter // of wire
}

// newPlant takes the data directory, makes or checks its files, and parses all
// command lines. Every problem that can be seen without starting anything is
// reported here, together.
func newPlant(ctx context.Context, cfg config.Controller, o Options) (_ *plant, err error) {
	p := &plant{cfg: cfg, o: o, layout: cfg.Layout(), log: o.Logs.Logger("kthwd")}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	bridgeKlog(ctx, o.Logs)
	quietClients()
	if p.lock, err = lockDataDir(p.layout); err != nil {
		return nil, err
	}
	if err := guard(p.layout, parseUserArgs(cfg.EtcdArgs), versionsOf(o.Version)); err != nil {
		return nil, err
	}
	if err := CheckPorts(cfg, o.Metrics.Address); err != nil {
		_, misfits := pki.Check(p.layout, cfg.PKISpec()) // reads only: all that is wrong is said at once
		return nil, errors.Join(err, misfits)
	}
	if err := p.ensurePKI(); err != nil {
		return nil, err
	}
	if p.socket, err = newSocketDir(p.layout); err != nil {
		return nil, err
	}
	if err := writeTracing(cfg, p.layout); err != nil {
		return nil, err
	}
	if p.identity, err = instanceIdentity(p.layout, cfg.Name); err != nil {
		return nil, err
	}
	if err := p.buildArgs(); err != nil {
		return nil, asUsage(err)
	}
	if err := p.oldFiles(); err != nil {
		return nil, err
	}
	p.programs, err = parsePrograms(p.args)
	return p, asUsage(err)
}

func (p *plant) close() {
	p.socket.close()
	if p.lock != nil {
		_ = p.lock.Truncate(0) // nobody is to signal a number that is another process's by then
		p.lock.Close()
	}
}

func (p *plant) ensurePKI() error {
	report, err := pki.Ensure(p.layout, p.cfg.PKISpec())
	if len(report.Created) > 0 {
		p.log.Info("files made", "dir", p.layout.Dir, "count", len(report.Created))
		p.warnOfOwnCA(report.Created)
	}
	for _, w := range report.Warnings {
		p.log.Warn(w)
	}
	return err
}

// warnOfOwnCA says that a controller of several has just made itself a cluster of
// its own, with which no other one will speak.
func (p *plant) warnOfOwnCA(created []string) {
	if len(p.cfg.InitialCluster) > 1 && slices.Contains(created, p.layout.CA()) {
		p.log.Warn("a CA was made here, and the other controllers need this very one; kthwd pki init --controllers makes the files of all",
			"file", p.layout.CA(), "initial-cluster", strings.Join(p.cfg.InitialCluster, ","))
	}
}

// buildArgs makes the four command lines: kthwd's, under the user's, in today's words.
func (p *plant) buildArgs() error {
	p.args = map[string][]arg{}
	var errs []error
	for _, c := range []struct {
		program string
		ours    []arg
		users   []string
	}{
		{nameEtcd, etcdArgs(p.cfg, p.layout, p.socket.etcd), p.cfg.EtcdArgs},
		{nameAPIServer, apiserverArgs(p.cfg, p.layout, p.socket.etcd), p.cfg.APIServerArgs},
		{nameControllerManager, withoutMissingKey(controllerManagerArgs(p.cfg, p.layout), p.layout), p.cfg.ControllerManagerArgs},
		{nameScheduler, schedulerArgs(p.cfg, p.layout), p.cfg.SchedulerArgs},
	} {
		users, old := translate(c.program, parseUserArgs(c.users))
		users, dropped, refused := checkOwned(c.program, c.ours, users)
		errs = append(errs, refused...)
		for _, w := range append(old, dropped...) {
			p.log.Warn(w)
		}
		users = p.takeVerbosity(c.program, users)
		merged, overrides := merge(c.program, c.ours, users)
		for _, o := range overrides {
			p.log.Info("flag overridden", "program", o.program, "flag", o.key, "was", o.ours, "is", o.users)
		}
		p.args[c.program] = merged
	}
	return errors.Join(errs...)
}

// takeVerbosity turns --v=2, which upstream would apply to its own logging
// setup, into the component's log level.
func (p *plant) takeVerbosity(program string, users []arg) []arg {
	var rest []arg
	for _, u := range users {
		if u.key != "v" {
			rest = append(rest, u)
			continue
		}
		n, err := strconv.Atoi(u.value)
		if err == nil {
			err = p.setVerbosity(program, n)
		}
		if err != nil {
			p.log.Warn("verbosity ignored", "program", program, "err", err)
		}
	}
	return rest
}

// setVerbosity does for a program, and for the code that it shares with the
// others, what --v=n does upstream.
func (p *plant) setVerbosity(program string, n int) error {
	logs := p.o.Logs
	if program != nameEtcd && logs.Level(nameKubernetes) > slog.Level(-n-1) {
		if err := logs.SetLevel(nameKubernetes, verbosityLevel(n)); err != nil {
			return err
		}
	}
	return logs.SetLevel(program, verbosityLevel(n))
}

// oldFiles reads the configuration files that may be written in an old form.
func (p *plant) oldFiles() error {
	warning, err := encryptionWarning(value(p.args[nameAPIServer], "encryption-provider-config"))
	if err != nil {
		return err
	}
	if err := checkPolicies(p.args[nameAPIServer]); err != nil {
		return err
	}
	file, schedWarning, err := schedulerConfig(value(p.args[nameScheduler], "config"), p.layout)
	if err != nil {
		return err
	}
	for _, w := range []string{warning, schedWarning} {
		if w != "" {
			p.log.Warn(w)
		}
	}
	if file != "" {
		if _, err := schedoptions.LoadConfigFromFile(discardLogger, file); err != nil {
			return WithHint(fmt.Errorf("%s: %s: %w", nameScheduler, file, err), "mend the file, or move it away and the scheduler runs by its flags")
		}
		p.args[nameScheduler], _ = merge(nameScheduler, p.args[nameScheduler], []arg{{"config", file}})
	}
	return nil
}

// storagePrefix is what kube-apiserver's keys in etcd begin with.
func (p *plant) storagePrefix() string {
	return cmp.Or(value(p.args[nameAPIServer], "etcd-prefix"), "/registry") // genericoptions.NewEtcdOptions
}

// value is what a program makes of a flag that may be given several times.
func value(args []arg, key string) string {
	for _, a := range slices.Backward(args) {
		if a.key == key {
			return a.value
		}
	}
	return ""
}

// wire puts the components together. Stops run from the bottom of this list to
// its top.
func (p *plant) wire() (*supervise.Group, *Pulse, error) {
	logs := p.o.Logs
	etcd, err := newEtcd(p.args[nameEtcd], logs.Logger(nameEtcd))
	if err != nil {
		return nil, nil, asUsage(err)
	}
	if err := etcd.admitControllers(p.layout.CA()); err != nil {
		return nil, nil, err
	}
	etcd.admit = func(ctx context.Context, server *embed.Etcd) error {
		err := p.checkShared(ctx, server, etcd.sharers(), etcd.log)
		if err == nil {
			arrive(ctx, server)
		}
		return err
	}
	etcd.counted = p.remember
	before, _ := readRecord(p.layout) // guard has looked at it
	etcd.once.Store(before != nil)
	g := supervise.New(p.log)
	leased := newFences(p.cfg.LocalServer())
	api := &apiServer{
		args: withoutGates(p.args[nameAPIServer]), server: p.cfg.LocalServer(),
		layout: p.layout, etcd: etcd, fences: leased, log: logs.Logger(nameAPIServer),
	}
	api.usersDelay = slices.ContainsFunc(parseUserArgs(p.cfg.APIServerArgs), func(a arg) bool { return a.key == keyShutdownDelay })
	delay, _ := time.ParseDuration(value(p.args[nameAPIServer], keyShutdownDelay)) // upstream's parser has had it already
	switch {
	case p.hadOthers():
		etcd.steady()
	case alone(etcd.cfg):
		etcd.open = api.begin
	}
	kcm := &controllerManager{
		args: withoutGates(p.args[nameControllerManager]), options: p.programs.kcm, identity: p.identity, fence: &leased.controllerManager,
		record: newLeaseRecord(nameControllerManager, p.identity), alive: aliveCheck(g, nameControllerManager), logs: logs, log: logs.Logger(nameControllerManager),
	}
	sched := &kubeScheduler{
		args: withoutGates(p.args[nameScheduler]), options: p.programs.sched, settings: p.programs.settings, identity: p.identity, fence: &leased.scheduler,
		record: newLeaseRecord(nameScheduler, p.identity), alive: aliveCheck(g, nameScheduler), logs: logs, log: logs.Logger(nameScheduler),
	}

	members := newMembers(members{
		etcd: etcd, cfg: p.cfg, layout: p.layout, version: p.o.Version, prefix: p.storagePrefix(), log: logs.Logger(nameMembers),
	})

	seed := p.newSeed(api)
	collectors := []prometheus.Collector{seed.Collector()}
	var bridge *health.Bridge
	if p.cfg.HealthAddress != "" {
		bridge = p.newHealth(g)
		collectors = append(collectors, bridge.Collector())
	}
	bridges := []*supervise.Node{g.Add(p.newStatus(g, etcd, members, api, []*leaseRecord{kcm.record, sched.record}, collectors...)).StopWithin(stopBridges)}
	if bridge != nil {
		bridges = append(bridges, g.Add(bridge).StopWithin(stopBridges))
	}
	if p.o.Beside != nil {
		p.o.Beside.Add(g, bridges[0])
	}
	etcdNode := g.Add(etcd, bridges...).StopWithin(stopEtcd)
	g.Add(members, etcdNode).StopWithin(stopBridges)
	apiNode := g.Add(api, etcdNode).StopWithin(stopAPIServer + delay)
	g.Add(seed, apiNode)
	// The ports open at once; the programs behind them wait for the API server.
	kcmPort := g.Add(kcm.server(), bridges...).StopWithin(stopBridges)
	schedPort := g.Add(sched.server(), bridges...).StopWithin(stopBridges)
	g.Add(kcm, apiNode, kcmPort).StopWithin(stopControllers)
	g.Add(sched, apiNode, schedPort).StopWithin(stopControllers)
	return g, &Pulse{group: g, etcd: etcd, api: api}, nil
}

// hadOthers tells whether the member was one of several when this directory was
// last in use.
func (p *plant) hadOthers() bool {
	r, err := readRecord(p.layout)
	return err == nil && r != nil && r.Members > 1
}

// newStatus answers questions about this process.
func (p *plant) newStatus(g *supervise.Group, e *etcd, m *members, api *apiServer, leases []*leaseRecord, collectors ...prometheus.Collector) supervise.Component {
	versions, beside := Versions(), p.o.Beside
	if beside == nil {
		beside = &Beside{Report: func(*status.Report) {}}
	}
	used := status.CertificatesOf(p.usedFiles)
	p.events = newEventWriter(p.cfg.Name, api.Loopback, used, p.o.Logs.Logger("kthwd"))
	return status.NewServer(status.ServerConfig{
		Changed: g.Changed, OnEvent: p.events.seen,
		Socket: p.socket.control, Address: p.o.Metrics.Address, Web: p.o.Metrics.Web, Pprof: p.o.Metrics.Pprof,
		Logs: p.o.Logs, Collectors: append(collectors, beside.Collectors...), Programs: programSeries(), Private: m.private(),
		Report: func() status.Report {
			ready, reason := g.Ready()
			quorum := e.Quorum()
			r := status.Report{
				Version: p.o.Version, Kubernetes: versions.Kubernetes, Etcd: versions.Etcd,
				PID: os.Getpid(), Started: p.o.Started, Ready: ready, Reason: reason,
				Components: g.Status(), Quorum: &quorum,
				Name: p.cfg.Name, Dependencies: g.Dependencies(), Restarts: g.Restarts(),
				Member: e.Member(), Certificates: append(used(), api.loopbackCertificate()...),
			}
			for _, l := range leases {
				r.Leases = append(r.Leases, l.Lease())
			}
			beside.Report(&r)
			return r
		},
	})
}

func (p *plant) newHealth(g *supervise.Group) *health.Bridge {
	return health.New(health.Config{
		Address:    p.cfg.HealthAddress,
		ServerName: p.cfg.HealthServerName,
		Target:     p.cfg.LocalServer(),
		CAFile:     p.layout.CA(),
		CertFile:   p.layout.Cert(pki.NameHealth),
		KeyFile:    p.layout.Key(pki.NameHealth),
		Local:      g.Ready,
		Components: func() []health.Check { return checks(g) },
		Log:        p.o.Logs.Logger("health"),
	})
}

// checks is the state record as the bridge's ?verbose shows it.
func checks(g *supervise.Group) []health.Check {
	var all []health.Check
	for _, s := range g.Status() {
		reason := s.Reason
		if reason == "" {
			reason = string(s.State)
		}
		all = append(all, health.Check{Name: s.Name, OK: s.Healthy(), Reason: reason})
	}
	return all
}

// newSeed binds the role to the user in the certificate that the API server
// shows to kubelets.
func (p *plant) newSeed(api *apiServer) *rbacseed.Seed {
	return rbacseed.New(rbacseed.Config{
		User: kubeletClientUser(value(p.args[nameAPIServer], "kubelet-client-certificate")),
		Client: func() (rbacclient.RbacV1Interface, error) {
			loopback, err := api.Loopback()
			if err != nil {
				return nil, err
			}
			return rbacclient.NewForConfig(loopback)
		},
		Log: p.o.Logs.Logger("rbac-seed"),
	})
}

// announce calls the caller's hooks for as long as the group lives, and settled
// when everything is ready for the first time.
func announce(ctx context.Context, g *supervise.Group, o Options, settled func(context.Context)) {
	told := false
	g.Follow(ctx, func(ready bool, reason string) {
		if o.OnChange != nil {
			o.OnChange(ready, reason)
		}
		if ready && !told {
			told = true
			go settled(ctx)
			if o.OnReady != nil {
				o.OnReady(g.Timeline())
			}
		}
	})
}

// CheckPorts finds all ports in use before anything is written or started.
func CheckPorts(c config.Controller, metrics string) error {
	type port struct {
		component, host, flag string
		number                int
	}
	ports := []port{
		{nameAPIServer, c.BindAddress, "--secure-port", c.SecurePort},
		{nameEtcd, c.AdvertiseAddress, "--etcd-client-port", c.EtcdClientPort},
		{nameEtcd, c.AdvertiseAddress, "--etcd-peer-port", c.EtcdPeerPort},
		{nameControllerManager, controllersBind(c), "--controller-manager-port", c.ControllerManagerPort},
		{nameScheduler, controllersBind(c), "--scheduler-port", c.SchedulerPort},
	}
	if c.AdvertiseAddress != "127.0.0.1" {
		ports = append(ports, port{nameEtcd, "127.0.0.1", "--etcd-client-port", c.EtcdClientPort})
	}
	var errs []error
	for _, p := range ports {
		errs = append(errs, tryListen(p.component, net.JoinHostPort(p.host, fmt.Sprint(p.number)), p.flag))
	}
	if c.HealthAddress != "" {
		errs = append(errs, tryListen("health", c.HealthAddress, "--health-address"))
	}
	if metrics != "" {
		errs = append(errs, tryListen("status", metrics, "--metrics-address"))
	}
	return errors.Join(errs...)
}

func tryListen(component, address, flag string) error {
	l, err := net.Listen("tcp", address)
	if err == nil {
		return l.Close()
	}
	return WithHint(fmt.Errorf("%s: %w", component, err), portHint(err, address, flag))
}
