// Package appliance runs the Kubernetes control plane "the hard way" as
// goroutines of one process: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler, with the flags, files and users that the guide gives them by
// hand, the HTTP health bridge and the RBAC seed.
//
//	health bridge, status ─► etcd ─► kube-apiserver ─► { rbac seed, kube-controller-manager, kube-scheduler }
//
// An arrow means: starts when the left one is ready, stops before it. wire.go is
// that list; package prepare is everything that must be right before it.
//
// The packages below catch what upstream's code would do to its host. A lost lease ends
// one term of one program, not the process (lease). A missing quorum is a state in which
// everything waits (etcd, apiserver). A fatal log line becomes an orderly stop
// (upstream). Only the caller exits the process.
//
// Feature gates, metrics registries and the klog logger are process-wide, so
// only one Run may be active in a process.
package appliance

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/config"
	"kthwd/appliance/controllers"
	"kthwd/appliance/etcd/embedded"
	"kthwd/appliance/liveness"
	"kthwd/appliance/logging"
	"kthwd/appliance/prepare"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/appliance/tune"
	"kthwd/appliance/upstream"
)

// Options is the input of Run.
type Options struct {
	Logs       *logging.Logs                     // where everything is logged
	Version    string                            // kthwd's own, for status
	File       string                            // kthwd's configuration file, to be watched; empty for none
	Metrics    Metrics                           // where metrics and status are served
	Disposable bool                              // the data is thrown away: little memory before speed under load, and small files
	Started    time.Time                         // when the process began; zero means now
	AsTyped    func(string) string               // spells the commands on the page as they are typed here; may be nil
	OnWork     func()                            // called from time to time in a long step before the first component starts; may be nil
	OnServing  func()                            // called once, when the API server is ready; may be nil
	OnReady    func(timeline []supervise.Status) // called once, when everything is ready; may be nil
	OnChange   func(ready bool, reason string)   // called after each change of the state record; may be nil
	OnWired    func(*liveness.Probe)             // called once, before the first component starts; may be nil
	LeafLife   time.Duration                     // how long a certificate is valid that kthwd renews; 0 means a year
	ExtraRole  *ExtraRole                        // another role of the process; may be nil

	// Private returns more handlers for the unix socket, given the programs' command
	// lines; nil for none.
	Private func(args map[string][]program.Arg) map[string]http.HandlerFunc
}

// ReadCertificatesEvery makes the programs look for new certificates more often than upstream
// does. Call it before Run; it is for tests.
func ReadCertificatesEvery(d time.Duration) { controllers.ReadCertificatesEvery(d) }

// Metrics configures the address of metrics and status.
type Metrics struct {
	Address string // empty for none
	Web     string // web configuration file; empty for plain HTTP
	Pprof   bool   // profiles beside them
}

// ExtraRole is another role in a controller's process: its components and its part of the
// status.
type ExtraRole struct {
	Add        func(g *supervise.Group, status *supervise.Node) // adds them, after status and before etcd
	Report     func(*status.Report)                             // completes the report
	Collectors []prometheus.Collector
}

// Run runs a controller until ctx ends or a component fails. It blocks, and returns nil
// only after a clean, requested stop.
func Run(ctx context.Context, cfg config.Controller, o Options) (err error) {
	if o.Started.IsZero() {
		o.Started = time.Now()
	}
	tuner := begin(o)
	made, err := prepare.Controller(ctx, cfg, prepare.Options{
		Logs: o.Logs, Version: o.Version, Started: o.Started, Metrics: o.Metrics.Address, LeafLife: o.LeafLife, Working: o.OnWork,
	})
	if err != nil {
		return err
	}
	defer made.Close()
	p := &wiring{Prepared: made, o: o, log: o.Logs.Logger("kthwd")}
	p.tune(tuner)
	defer func() { p.Run.End(err) }()
	g, probe, err := p.wire()
	if err != nil {
		return err
	}
	if o.OnWired != nil {
		o.OnWired(probe)
	}
	restore := upstream.CatchExits(g, o.Logs.Logger("kthwd"))
	defer restore()
	watching, stopWatching := context.WithCancel(context.Background())
	defer stopWatching()
	go announce(watching, g, o, func(ctx context.Context) {
		p.Run.Ready()
		tuner.Settle(ctx)
	})
	go p.events.Run(watching)
	for _, w := range p.watchers {
		p.readers.Run(g.Leaving(), w.Run) // the API server that they ask stops, too
	}
	p.readers.Run(watching, p.workers.Follow) // the API server serves on while it leaves
	p.readers.Run(watching, p.users.Follow)
	p.Run.Keep()
	go tuner.Follow(watching)
	go p.Run.Beat(watching, tuner.Needs)
	defer context.AfterFunc(ctx, func() { p.Run.Asked(context.Cause(ctx)) })()
	for _, l := range p.live {
		go l.Follow(watching)
	}
	go p.others.Run(watching)
	p.readers.Run(watching, p.mover.Run)
	p.readers.Run(watching, p.rotations.Gate.Run)
	p.readers.Run(g.Leaving(), p.upgrade.Run)
	for _, r := range p.rotations.All() {
		p.readers.Run(g.Leaving(), r.Run) // a rotation stops before the API server does
	}
	return g.Run(ctx)
}

// announce calls the caller's hooks while the group runs, and afterStart when everything is
// ready for the first time.
func announce(ctx context.Context, g *supervise.Group, o Options, afterStart func(context.Context)) {
	announced, serving := false, o.OnServing == nil
	g.Follow(ctx, func(ready bool, reason string) {
		if !serving && serves(g.Status()) {
			serving = true
			o.OnServing()
		}
		if o.OnChange != nil {
			o.OnChange(ready, reason)
		}
		if ready && !announced {
			announced = true
			go afterStart(ctx)
			if o.OnReady != nil {
				o.OnReady(g.Timeline())
			}
		}
	})
}

// serves reports whether the API server is ready.
func serves(all []supervise.Status) bool {
	return slices.ContainsFunc(all, func(s supervise.Status) bool { return s.Name == program.APIServer && s.Healthy() })
}

// begin prepares the process for its start.
func begin(o Options) *tune.Tuner {
	if o.Disposable {
		embedded.ShortenLog()
	}
	return tune.Process(tune.Config{Log: o.Logs.Logger("kthwd"), Brief: o.Disposable})
}

// tune lets the status show what the tuner finds.
func (p *wiring) tune(t *tune.Tuner) {
	t.Needed(p.Run.NeededBefore())
	p.observers = append(p.observers, t)
}
