package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	basecompatibility "k8s.io/component-base/compatibility"
	apioptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	kcmapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	schedoptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"kthwd/appliance/advice"
	"kthwd/appliance/apiserver"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/config"
	"kthwd/appliance/controllers"
	"kthwd/appliance/datadir"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/pki"
	"kthwd/appliance/preflight"
	"kthwd/appliance/program"
	"kthwd/appliance/tune"
	"kthwd/appliance/upstream"
)

// prepared is the verified input of all components.
type prepared struct {
	cfg       config.Controller
	o         Options
	layout    pki.Layout
	log       *slog.Logger
	lock      *os.File
	socket    *datadir.Sockets
	args      map[string][]program.Arg
	programs  *programs
	identity  string
	record    etcdfiles.Record // as last written by this process; used by etcd's goroutine
	events    *eventWriter     // set by wire
	observers []observer       // added by wire, before the status
	watchers  []watcher        // the observers among them that run beside the components; added by wire
	run       *lastrun.Run     // the record of this run
}

// prepare locks the data directory, makes or checks its files, and parses all command
// lines. It reports every problem that is visible before a start, all at once.
func prepare(ctx context.Context, cfg config.Controller, o Options) (_ *prepared, err error) {
	p := &prepared{cfg: cfg, o: o, layout: cfg.Layout(), log: o.Logs.Logger("kthwd")}
	defer func() {
		if err != nil {
			p.run.End(err)
			p.close()
		}
	}()
	upstream.BridgeKlog(ctx, o.Logs)
	upstream.QuietClients()
	if p.lock, err = datadir.Lock(p.layout); err != nil {
		return nil, err
	}
	p.run = lastrun.Begin(lastrun.In(p.layout.Run()), lastrun.Start{
		Version: o.Version, Started: o.Started, Limit: tune.GroupMemory(), Needs: preflight.NeedsMemory, Log: p.log,
	})
	if err := etcdfiles.Guard(p.layout, program.ParseUser(cfg.EtcdArgs), etcdfiles.Versions(o.Version)); err != nil {
		return nil, err
	}
	if err := preflight.Ports(cfg, o.Metrics.Address); err != nil {
		_, misfits := pki.Check(p.layout, cfg.PKISpec()) // only reads, so that all problems are reported at once
		return nil, errors.Join(err, misfits)
	}
	if err := p.ensurePKI(); err != nil {
		return nil, err
	}
	if p.socket, err = datadir.NewSockets(p.layout); err != nil {
		return nil, err
	}
	if err := program.WriteTracing(cfg, p.layout); err != nil {
		return nil, err
	}
	if p.identity, err = datadir.Identity(p.layout, cfg.Name); err != nil {
		return nil, err
	}
	if err := p.buildArgs(); err != nil {
		return nil, advice.Usage(err)
	}
	if err := p.oldFiles(); err != nil {
		return nil, err
	}
	p.programs, err = parsePrograms(p.args)
	return p, advice.Usage(err)
}

func (p *prepared) close() {
	p.socket.Close()
	if p.lock != nil {
		_ = p.lock.Truncate(0) // the number may belong to another process by then
		p.lock.Close()
	}
}

func (p *prepared) ensurePKI() error {
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

// warnOfOwnCA warns that one of several controllers has just made a CA of its own, which
// the other controllers do not trust.
func (p *prepared) warnOfOwnCA(created []string) {
	if len(p.cfg.InitialCluster) > 1 && slices.Contains(created, p.layout.CA()) {
		p.log.Warn("a CA was made here, and the other controllers need this very one; kthwd pki init --controllers makes the files of all",
			"file", p.layout.CA(), "initial-cluster", strings.Join(p.cfg.InitialCluster, ","))
	}
}

// buildArgs makes the four command lines: kthwd's flags, then the user's over them, with
// old flags translated.
func (p *prepared) buildArgs() error {
	p.args = map[string][]program.Arg{}
	var errs []error
	for _, c := range []struct {
		program string
		ours    []program.Arg
		users   []string
	}{
		{program.Etcd, program.EtcdArgs(p.cfg, p.layout, p.socket.Etcd), p.cfg.EtcdArgs},
		{program.APIServer, program.APIServerArgs(p.cfg, p.layout, p.socket.Etcd), p.cfg.APIServerArgs},
		{program.ControllerManager, program.WithoutMissingKey(program.ControllerManagerArgs(p.cfg, p.layout), p.layout), p.cfg.ControllerManagerArgs},
		{program.Scheduler, program.SchedulerArgs(p.cfg, p.layout), p.cfg.SchedulerArgs},
	} {
		users, old := cmdline.Translate(c.program, program.ParseUser(c.users))
		users, dropped, refused := program.CheckOwned(c.program, c.ours, users)
		errs = append(errs, refused...)
		for _, w := range append(old, dropped...) {
			p.log.Warn(w)
		}
		users = p.takeVerbosity(c.program, users)
		merged, overrides := program.Merge(c.program, c.ours, users)
		for _, o := range overrides {
			p.log.Info("flag overridden", "program", o.Program, "flag", o.Key, "was", o.Ours, "is", o.Users)
		}
		p.args[c.program] = merged
	}
	return errors.Join(errs...)
}

// takeVerbosity turns --v=n into the component's log level. Upstream would apply it to
// its own logging setup.
func (p *prepared) takeVerbosity(name string, users []program.Arg) []program.Arg {
	var rest []program.Arg
	for _, u := range users {
		if u.Key != "v" {
			rest = append(rest, u)
			continue
		}
		n, err := strconv.Atoi(u.Value)
		if err == nil {
			err = p.setVerbosity(name, n)
		}
		if err != nil {
			p.log.Warn("verbosity ignored", "program", name, "err", err)
		}
	}
	return rest
}

// setVerbosity applies --v=n to a program and to the code that it shares with the others.
func (p *prepared) setVerbosity(name string, n int) error {
	logs := p.o.Logs
	if name != program.Etcd && logs.Level(program.Kubernetes) > slog.Level(-n-1) {
		if err := logs.SetLevel(program.Kubernetes, upstream.VerbosityLevel(n)); err != nil {
			return err
		}
	}
	return logs.SetLevel(name, upstream.VerbosityLevel(n))
}

// oldFiles reads the configuration files that may have an old format.
func (p *prepared) oldFiles() error {
	warning, err := cmdline.EncryptionWarning(program.Value(p.args[program.APIServer], "encryption-provider-config"))
	if err != nil {
		return err
	}
	if err := cmdline.CheckPolicies(p.args[program.APIServer]); err != nil {
		return err
	}
	file, schedWarning, err := cmdline.SchedulerConfig(program.Value(p.args[program.Scheduler], "config"), p.layout)
	if err != nil {
		return err
	}
	for _, w := range []string{warning, schedWarning} {
		if w != "" {
			p.log.Warn(w)
		}
	}
	if file != "" {
		if _, err := schedoptions.LoadConfigFromFile(cmdline.DiscardLogger, file); err != nil {
			return advice.With(fmt.Errorf("%s: %s: %w", program.Scheduler, file, err), "mend the file, or move it away and the scheduler runs by its flags")
		}
		p.args[program.Scheduler], _ = program.Merge(program.Scheduler, p.args[program.Scheduler], []program.Arg{{Key: "config", Value: file}})
	}
	return nil
}

// storagePrefix returns the prefix of kube-apiserver's keys in etcd.
func (p *prepared) storagePrefix() string {
	return cmp.Or(program.Value(p.args[program.APIServer], "etcd-prefix"), "/registry") // genericoptions.NewEtcdOptions
}

// programs are the three Kubernetes programs' options, parsed and valid.
type programs struct {
	api      *apioptions.ServerRunOptions
	kcm      *kcmoptions.KubeControllerManagerOptions
	sched    *schedoptions.Options
	settings controllers.Settings
}

// parsePrograms parses all three command lines, sets the feature gates once,
// and validates. It changes nothing but the process-wide gates.
func parsePrograms(args map[string][]program.Arg) (*programs, error) {
	if err := cmdline.CheckGates(args); err != nil {
		return nil, err
	}
	p := &programs{}
	var errs [3]error
	p.api, errs[0] = apiserver.Parse(args[program.APIServer], pki.ControllerNames{})
	p.kcm, errs[1] = controllers.ParseManager(args[program.ControllerManager])
	p.sched, errs[2] = controllers.ParseScheduler(args[program.Scheduler])
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	registry := p.api.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return nil, fmt.Errorf("feature gates: %w", err)
	}
	registry.AddMetrics()
	if gates, ok := registry.FeatureGateFor(basecompatibility.DefaultKubeComponent).(interface{ AddMetrics() }); ok {
		gates.AddMetrics()
	}
	return p, p.validate()
}

func (p *programs) validate() error {
	var errs []error
	add := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	completed, err := p.api.Complete(context.Background())
	add(program.APIServer, err)
	if err == nil {
		add(program.APIServer, errors.Join(completed.Validate()...))
	}
	add(program.ControllerManager, p.kcm.Validate(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases()))
	p.settings, err = controllers.ReadSettings(p.sched)
	if err != nil {
		errs = append(errs, err)
	} else if p.sched.ComponentConfig != nil {
		add(program.Scheduler, errors.Join(p.sched.Validate()...))
	}
	return errors.Join(errs...)
}

// usesShared reports whether the API server uses a file: the user's flags may name another.
func (p *prepared) usesShared(path string) bool {
	return slices.ContainsFunc(p.args[program.APIServer], func(a program.Arg) bool { return a.Value == path })
}
