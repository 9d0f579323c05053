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

	"kthwd/appliance/config"
	"kthwd/appliance/pki"
)

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

// programs are the three Kubernetes programs' options, parsed and valid.
type programs struct {
	api      *apioptions.ServerRunOptions
	kcm      *kcmoptions.KubeControllerManagerOptions
	sched    *schedoptions.Options
	settings schedulerSettings
}

// parsePrograms parses all three command lines, sets the feature gates once,
// and validates. It changes nothing but the process-wide gates.
func parsePrograms(args map[string][]arg) (*programs, error) {
	if err := checkGates(args); err != nil {
		return nil, err
	}
	p := &programs{}
	var errs [3]error
	p.api, errs[0] = parseAPIServer(args[nameAPIServer])
	p.kcm, errs[1] = parseControllerManager(args[nameControllerManager])
	p.sched, errs[2] = parseScheduler(args[nameScheduler])
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
	add := func(program string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", program, err))
		}
	}
	completed, err := p.api.Complete(context.Background())
	add(nameAPIServer, err)
	if err == nil {
		add(nameAPIServer, errors.Join(completed.Validate()...))
	}
	add(nameControllerManager, p.kcm.Validate(kcmapp.KnownControllers(), kcmapp.ControllersDisabledByDefault(), kcmapp.ControllerAliases()))
	p.settings, err = readSchedulerSettings(p.sched)
	if err != nil {
		errs = append(errs, err)
	} else if p.sched.ComponentConfig != nil {
		add(nameScheduler, errors.Join(p.sched.Validate()...))
	}
	return errors.Join(errs...)
}

// usesShared tells whether the API server is told to use a file: the user's flags
// may name another one.
func (p *plant) usesShared(path string) bool {
	return slices.ContainsFunc(p.args[nameAPIServer], func(a arg) bool { return a.value == path })
}
