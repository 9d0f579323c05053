package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance"
	"kthwd/appliance/advice"
	"kthwd/appliance/cause"
	"kthwd/appliance/config"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/logging"
	"kthwd/appliance/observe"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/support"
	"kthwd/appliance/text"
	"kthwd/appliance/tune"
	"kthwd/cmd/kthwd/cli"
	lookverbs "kthwd/cmd/kthwd/look"
	"kthwd/lb"
	"kthwd/lb/discovery"
)

// Time for a stop beyond the shutdown delay and the drain timeout of the configuration.
const (
	stopMargin = 5 * time.Second
	stopStatus = 5 * time.Second
)

// balancing is the part of lb.Server that this package uses.
type balancing interface {
	supervise.Component
	Reload(lb.Config) error
	Status() lb.Status
	Alive(context.Context) error
	Collector() prometheus.Collector
}

// balancer is the load balancer of this process, as a component of its group. It
// adds to lb.Server what concerns the process: reload, upgrade, status.
type balancer struct {
	server balancing
	app    *app
	logs   *logging.Logs
	log    *slog.Logger // of the component kthwd, the process
	alone  bool         // the process has no other role
	end    func()       // ends the process in order; set before Run

	discovery *discovery.Discovery // nil if it is off

	node       *supervise.Node
	budget     atomic.Int64  // time.Duration of the stop
	up         chan struct{} // closed once it accepts clients
	handedOver atomic.Bool   // to a new process
	upgrading  atomic.Bool
	loader     *config.Loader // has the configuration in force; owned by the reload goroutine
	inForce    atomic.Pointer[config.Loader]
	files      atomic.Pointer[[]string] // certificate files of the configuration in force
	static     atomic.Pointer[[]string] // servers of the configuration in force
	uncounted  bool                     // the last reload failed before lb.Server, which counts, saw it; owned by the reload goroutine
	used       func() []status.Certificate
	record     *lastrun.Run   // of a process without another role; nil without a place for it
	machine    *observe.Watch // likewise
	quiet      slog.Level     // level of the component lb before toggleDebug turned debug on
}

var _ supervise.Component = (*balancer)(nil)

func (a *app) newBalancer(l *config.Loader, logs *logging.Logs) (*balancer, error) {
	b := &balancer{
		app: a, logs: logs, log: logs.Logger("kthwd"), alone: !l.Config.Is(config.RoleController),
		up: make(chan struct{}), loader: l,
	}
	last, problem := b.newDiscovery()
	server, err := lb.New(l.Config.LB, lb.Options{
		Log: logs.Logger(nameLB), Sockets: a.inherits.sockets, Discovered: last,
		TakeOver: a.inherits.predecessor != 0, OnSuccessor: b.successor, Alone: b.alone,
	})
	if err := errors.Join(err, problem); err != nil {
		return nil, l.WithPlaces(err)
	}
	b.server = server
	b.inForce.Store(l)
	b.files.Store(b.certificateFiles(l.Config))
	b.used = status.CertificatesOf(func() []string { return *b.files.Load() })
	if b.discovery != nil {
		b.discovery.OnList(server.SetDiscovered)
	}
	return b, nil
}

// Names of the components in logs.
const (
	nameLB        = "lb"
	nameDiscovery = "lb-discovery"
)

// newDiscovery makes the discovery of backends, if the configuration has one, and
// returns its last known list.
func (b *balancer) newDiscovery() (last []string, err error) {
	c := b.loader.Config.LB
	if c.DiscoveryKubeconfig == "" {
		return nil, nil
	}
	servers := c.Servers()
	b.static.Store(&servers)
	d, err := discovery.New(discovery.Config{
		Kubeconfig: c.DiscoveryKubeconfig, Cache: c.DiscoveryCache,
		Static: func() []string { return *b.static.Load() }, Log: b.logs.Logger(nameDiscovery),
	})
	if err != nil {
		return nil, err
	}
	b.discovery = d
	return d.Last(), nil
}

// awaitBackends waits for the first backend; it returns false if ctx ends before.
func (b *balancer) awaitBackends(ctx context.Context) bool {
	if b.discovery == nil || len(b.loader.Config.LB.Backends) > 0 {
		return true
	}
	select {
	case <-b.discovery.First():
		return true
	default:
	}
	supervise.Report(ctx).Waiting("waiting for the first list of backends")
	select {
	case <-b.discovery.First():
		supervise.Report(ctx).Starting("")
		return true
	case <-ctx.Done():
		return false
	}
}

// Name implements supervise.Component.
func (b *balancer) Name() string { return b.server.Name() }

// Run implements supervise.Component. After a hand-over it ends the process, unless
// that is a controller as well.
func (b *balancer) Run(ctx context.Context, ready func()) error {
	l := b.loader
	if !b.awaitBackends(ctx) {
		return nil
	}
	err := b.server.Run(ctx, func() {
		ready()
		close(b.up)
	})
	var file *fs.PathError
	switch {
	case errors.Is(err, syscall.EACCES) && !errors.As(err, &file):
		return advice.With(err, cli.LowPortHint+" with --listen")
	case !errors.Is(err, lb.ErrHandedOver):
		return l.WithPlaces(err)
	}
	b.handedOver.Store(true)
	if b.alone {
		b.log.Info("handed over, ending")
		b.end()
	} else {
		b.log.Warn("handed over; the control plane continues")
		supervise.Report(ctx).Standby("another process balances")
	}
	<-ctx.Done()
	return nil
}

// add adds b and its discovery to a group. Discovery has neither dependencies nor
// dependents: it may reach the API through this balancer, and stops before that drains.
func (b *balancer) add(g *supervise.Group, status *supervise.Node) {
	b.node = g.Add(b, status)
	b.stopWithin(b.loader.Config.LB)
	if b.discovery != nil {
		g.Add(b.discovery, status).StopWithin(stopMargin)
	}
}

func (b *balancer) stopWithin(c lb.Config) {
	budget := c.ShutdownDelay + c.DrainTimeout + stopMargin
	b.budget.Store(int64(budget))
	b.node.StopWithin(budget)
}

// report completes the report of the process. After a hand-over the process no longer
// reports "not ready": that is the business of the new one.
func (b *balancer) report(r *status.Report) {
	s := b.server.Status()
	r.LB = &s
	for _, c := range b.certificates() {
		if !slices.Contains(r.Certificates, c) {
			r.Certificates = append(r.Certificates, c)
		}
	}
	if b.discovery != nil {
		d := b.discovery.Status()
		s.Discovery = &d
	}
	switch {
	case b.handedOver.Load():
		r.HandedOver = true
		r.Ready, r.Reason = r.Ready || b.alone, ""
	case r.Ready && !s.Ready:
		r.Ready, r.Reason = false, b.Name()+": "+s.Reason
	}
}

// certificates are the certificates in use; none in a test without files.
func (b *balancer) certificates() []status.Certificate {
	if b.used == nil {
		return nil
	}
	all := b.used()
	if b.discovery == nil || b.discovery.Status().Certificate == nil {
		return all
	}
	all = slices.Clone(all) // others have it
	for i, c := range all {
		if c.File == b.discovery.Kubeconfig && c.Use == "client" {
			all[i].Use = status.UseDiscovery
		}
	}
	return all
}

// certificateFiles are the certificates and kubeconfigs that a configuration names.
func (b *balancer) certificateFiles(c config.Config) *[]string {
	files := []string{c.LB.BackendCA, c.LB.CheckCert, c.LB.DiscoveryKubeconfig}
	if b.alone && c.MetricsWeb != "" {
		if w, err := status.ReadWeb(c.MetricsWeb); err == nil {
			files = append(files, w.Files()...)
		}
	}
	return &files
}

func (b *balancer) collectors() (all []prometheus.Collector) {
	if c := b.server.Collector(); c != nil {
		all = append(all, c)
	}
	if b.discovery != nil {
		all = append(all, b.discovery.Collector())
	}
	return all
}

// extraRole is the balancer as a role in a controller's process.
func (b *balancer) extraRole() *appliance.ExtraRole {
	return &appliance.ExtraRole{Add: b.add, Report: b.report, Collectors: b.collectors()}
}

// balancerGrowth is GOGC of a process that is only a load balancer. Its heap is about
// 7 MiB, and each connection that arrives alone leaves 4.8 kB of garbage, most of it
// tcpproxy's buffer. With Go's default of 100, which collected after 1400 of them,
// connections cost 2 % more processor time.
const balancerGrowth = 400

// run runs a process that is only a load balancer.
func (b *balancer) run(ctx context.Context) (err error) {
	tune.LimitMemory(b.log)
	go tune.FollowLimit(ctx, b.log)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(balancerGrowth)
	}
	g := supervise.New(b.log)
	c := b.loader.Config
	socket, err := b.statusSocket()
	if err != nil {
		return err
	}
	defer b.watchOver(ctx, socket)()
	host, _ := os.Hostname() // for the page: without a name it says kthwd only
	st := g.Add(status.NewServer(status.ServerConfig{
		Socket:  socket,
		Address: c.MetricsAddress, Web: c.MetricsWeb, Pprof: c.MetricsPprof, TakeOver: b.app.inherits.predecessor != 0, Logs: b.logs, AsTyped: b.app.AsTyped, Collectors: b.collectors(), Shared: b.takesOver, Hold: b.up, Changed: g.Changed,
		Private: support.Handlers(b.logs, func() support.Running { return lookverbs.Running(b.app.App, b.inForce.Load(), nil) }),
		Report: func() status.Report {
			ready, reason := g.Ready()
			r := status.Report{
				Version: cli.Version, Name: host, PID: os.Getpid(), Started: b.app.started,
				Ready: ready, Reason: reason, Components: g.Status(), Dependencies: g.Dependencies(), Names: cause.Names{Unit: balancerUnit},
			}
			b.report(&r)
			b.observed(&r)
			r.Observed = append(r.Observed, webClients(c).Findings()...)
			return r
		},
	})).StopWithin(stopStatus)
	b.add(g, st)
	defer func() { b.record.End(err) }()
	defer context.AfterFunc(ctx, func() { b.record.Asked(context.Cause(ctx)) })()
	watching, stop := context.WithCancel(context.Background())
	defer stop()
	go g.Follow(watching, b.onChange(ctx))
	b.app.attend(ctx, b.log, lbLiveness{g, b})
	context.AfterFunc(ctx, func() {
		if !b.handedOver.Load() {
			b.app.notify.extend(time.Duration(b.budget.Load()) + stopStatus)
		}
	})
	return g.Run(ctx)
}

// lbLiveness answers for a process that is only a load balancer.
type lbLiveness struct {
	*supervise.Group
	b *balancer
}

// Alive queries the loops, once they run. A balancer without a backend that answers is
// alive.
func (p lbLiveness) Alive(ctx context.Context) error {
	p.Status()
	if p.b.handedOver.Load() {
		return nil
	}
	if err := p.b.server.Alive(ctx); err != nil {
		return fmt.Errorf("%s: %w", nameLB, err)
	}
	return nil
}

// statusSocket is the path on which this process answers kthwd status: "" if it has no
// permission for the default path, or another process answers there.
func (b *balancer) statusSocket() (string, error) {
	path := b.loader.Config.StatusSocket
	if path == "" {
		return "", nil
	}
	err := privateDir(filepath.Dir(path))
	if err == nil && b.app.inherits.predecessor == 0 {
		if conn, dialed := net.Dial("unix", path); dialed == nil {
			conn.Close()
			err = fmt.Errorf("%s: %w", path, syscall.EADDRINUSE)
		}
	}
	if err != nil && b.loader.Origin("status-socket") != config.OriginDefault {
		return "", advice.With(err, "choose another path with --status-socket, or disable it with --status-socket=")
	}
	switch address := b.loader.Config.MetricsAddress; {
	case err == nil:
		return path, nil
	case errors.Is(err, syscall.EADDRINUSE):
		hint := "kthwd status --metrics-address=" + address + " queries this one; --status-socket gives it a socket of its own"
		if address == "" {
			hint = "nothing can query this one; --status-socket gives it a socket of its own"
		}
		b.log.Warn("no status socket: another kthwd answers there, and kthwd status shows that one", "path", path, "hint", hint)
	default:
		b.log.Info("no status socket; the metrics address answers", "reason", text.Joined(err.Error()))
	}
	return "", nil
}

// privateDir makes a directory that only this user can enter, or checks that it is one.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: other users have access (want this user as owner, and mode 0700)", dir)
	}
	return nil
}

// takesOver reports whether r comes from the process that this one is about to take
// over from.
func (b *balancer) takesOver(r status.Report) bool { return r.PID == b.app.inherits.predecessor }

// whenUp calls f once the balancer is up: a reload would come too early before.
func (b *balancer) whenUp(ctx context.Context, f func()) {
	select {
	case <-b.up:
		f()
	case <-ctx.Done():
	}
}

// onChange returns a function that passes each state on to systemd, and logs the first
// time that all is ready.
func (b *balancer) onChange(ctx context.Context) func(ready bool, reason string) {
	changed, before := b.app.changed(ctx), false
	return func(ready bool, reason string) {
		changed(ready, reason)
		if ready && !before {
			before = true
			b.app.notify.ready()
			b.record.Ready()
			b.log.Info("all ready", "took", time.Since(b.app.started).Round(10*time.Millisecond))
		}
	}
}

// toggleDebug handles SIGUSR1: a load balancer has no socket for kthwd log-level.
func (b *balancer) toggleDebug() {
	level := "debug"
	switch at := b.logs.Level(nameLB); {
	case at > slog.LevelDebug:
		b.quiet = at
	case b.quiet > slog.LevelDebug:
		level = strings.ToLower(b.quiet.String())
	default:
		level = "info" // debug was on from the start
	}
	if err := b.logs.SetLevel(nameLB, level); err != nil {
		b.log.Error("log level not changed", "err", err)
		return
	}
	if b.discovery != nil {
		_ = b.logs.SetLevel(nameDiscovery, level) // cannot fail: the call above accepted the level
	}
	b.log.Info("log level changed", "of", nameLB, "level", level)
}

// reload reads the file and the command line again and applies the result, or returns
// an error and leaves everything as it was.
func (b *balancer) reload() error {
	b.app.notify.reloading()
	defer b.app.notify.reloaded()
	l, err := b.app.reread()
	if err == nil {
		err = l.CheckReload(b.loader)
	}
	if b.uncounted = err != nil; b.uncounted {
		return err
	}
	if err := b.server.Reload(l.Config.LB); err != nil {
		return l.WithPlaces(err)
	}
	changes := l.Changes(b.loader)
	if slices.Contains(changes, "log-level") {
		if err := b.logs.SetLevels(l.Config.LogLevel); err != nil {
			b.log.Error("log level not changed", "err", err)
		}
	}
	b.loader = l
	b.inForce.Store(l)
	b.files.Store(b.certificateFiles(l.Config))
	servers := l.Config.LB.Servers()
	b.static.Store(&servers)
	b.stopWithin(l.Config.LB)
	b.log.Info("configuration reloaded", "file", l.File(), "changed", strings.Join(changes, ","))
	return nil
}

// refused logs and counts a configuration that was not applied.
func (b *balancer) refused(err error) {
	if c, ok := b.server.(interface{ CountReload(error) }); ok && b.uncounted {
		c.CountReload(err)
	}
	for _, e := range advice.Lines(err) {
		var attrs []any
		if hint := cli.HintFor(e); hint != "" {
			attrs = append(attrs, "hint", text.Joined(hint))
		}
		b.log.Error("reload refused, the old configuration stays", append([]any{"err", text.Joined(e.Error())}, attrs...)...)
	}
}
