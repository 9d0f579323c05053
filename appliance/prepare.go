package appliance

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"kthwd/appliance/agree"
	"kthwd/appliance/backup"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/appliance/controllers"
	"kthwd/appliance/datadir"
	"kthwd/appliance/drift"
	"kthwd/appliance/environment"
	"kthwd/appliance/etcdca"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/events"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/membership"
	"kthwd/appliance/observe"
	"kthwd/appliance/others"
	"kthwd/appliance/pki"
	"kthwd/appliance/preflight"
	"kthwd/appliance/program"
	"kthwd/appliance/readers"
	"kthwd/appliance/rotations"
	"kthwd/appliance/selfbackup"
	"kthwd/appliance/support"
	"kthwd/appliance/tokenkeys"
	"kthwd/appliance/tune"
	"kthwd/appliance/upgrade"
	"kthwd/appliance/upstream"
	"kthwd/appliance/users"
	"kthwd/appliance/workers"
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
	programs  *commands.Programs
	identity  string
	record    etcdfiles.Record     // as last written by this process; used by etcd's goroutine
	events    *events.Writer       // set by wire
	drift     *drift.Drift         // set by wire
	tokens    *tokenkeys.Watch     // one of the observers; set by wire
	backups   *backup.Schedule     // one of them; set by wire
	agree     *agree.Controllers   // one of the watchers; set by wire
	observers []observer           // added by wire, before the status
	machine   *observe.Watch       // one of them; set by wire
	watchers  []watcher            // the observers among them that run beside the components; added by wire
	run       *lastrun.Run         // the record of this run
	others    *others.Others       // set by wire
	mover     *etcdca.Mover        // set by wire
	rotations *rotations.Rotations // set by wire
	workers   *workers.Desk        // one of the watchers; set by wire
	users     *users.Ledger        // one of them; set by wire
	upgrade   *upgrade.Watch       // set by wire
	renewed   []string             // files with expired certificates that this start has renewed

	shared  *membership.SharedFiles // set by wire
	readers *readers.Group          // set by wire

	live map[string]*controllers.Live // kubeconfigs that their clients follow, by program; set by wire
}

// prepare checks everything that is visible before a start, and reports all of its
// problems at once. Only then does it lock the data directory and make what is missing.
func prepare(ctx context.Context, cfg config.Controller, o Options) (_ *prepared, err error) {
	p := &prepared{cfg: cfg, o: o, layout: cfg.Layout(), log: o.Logs.Logger("kthwd")}
	defer func() {
		if err != nil {
			p.refused(err)
			p.close()
		}
	}()
	upstream.BridgeKlog(ctx, o.Logs)
	upstream.SilenceDeprecationWarnings()
	if err := p.check(); err != nil {
		return nil, err
	}
	return p, p.make(ctx)
}

// check writes nothing, not even the lock of a directory in which kthwd has never run.
func (p *prepared) check() (err error) {
	if err := datadir.Usable(p.layout); err != nil {
		return err
	}
	if datadir.Exists(p.layout.Lock()) {
		if p.lock, err = datadir.Lock(p.layout); err != nil {
			return err
		}
		if err := p.finishRestore(); err != nil {
			return err
		}
	}
	if err := datadir.NoLinks(p.layout.AuditLog(), p.layout.UnauthenticatedAuditLog()); err != nil {
		return err
	}
	if err := p.guard(); err != nil {
		return err
	}
	plan, err := pki.NewPlan(p.layout, p.spec())
	var lines *commands.Lines
	if err == nil {
		lines, err = commands.Check(p.cfg, plan)
	} else {
		err = errors.Join(err, commands.CheckWords(p.cfg))
	}
	if err := errors.Join(preflight.EnoughLimits(program.Quota(p.cfg)), preflight.Ports(p.cfg, p.o.Metrics.Address), selfbackup.CheckSettings(p.cfg), err); err != nil {
		return err
	}
	p.tell(lines)
	p.warnOfLittleMemory()
	return nil
}

// warnOfLittleMemory names what the kernel would not: it ends the process without a word.
func (p *prepared) warnOfLittleMemory() {
	if r := preflight.Memory(tune.UsableMemory()); r.Verdict == preflight.Fail {
		p.log.Warn("too little memory: the kernel is likely to end this process", "usable", r.Found, "needs-mib", preflight.NeedsMemory>>20, "hint", r.Do)
	}
}

// finishRestore ends a restore that was interrupted when it could no longer be undone.
func (p *prepared) finishRestore() error {
	done, err := datadir.FinishRestore(p.layout)
	if done {
		p.log.Info("the restore of a backup, which was interrupted, is finished", "dir", p.layout.Dir)
	}
	return err
}

// beginRun reads the record of the run before, and begins that of this one.
func (p *prepared) beginRun() {
	p.run = lastrun.Begin(lastrun.In(p.layout.Run()), lastrun.Start{
		Version: p.o.Version, Started: p.o.Started, Limit: tune.GroupMemory(), Needs: preflight.NeedsMemory, Log: p.log,
	})
}

// refused records a start that has failed, in a directory in which kthwd has run before.
func (p *prepared) refused(err error) {
	if p.run == nil && p.lock != nil {
		p.beginRun()
	}
	p.run.End(err)
}

// guard refuses a directory that belongs to another member or to other versions.
func (p *prepared) guard() error {
	peer := "https://" + net.JoinHostPort(p.cfg.AdvertiseAddress, strconv.Itoa(p.cfg.EtcdPeerPort))
	return errors.Join(etcdfiles.Guard(p.layout, program.ParseUser(p.cfg.EtcdArgs), etcdfiles.Versions(p.o.Version)),
		etcdfiles.GuardMember(p.layout, p.cfg.Name, peer))
}

// make makes what a start needs and what is missing, and the command lines with it.
func (p *prepared) make(ctx context.Context) (err error) {
	if p.lock == nil {
		if p.lock, err = datadir.Lock(p.layout); err != nil {
			return err
		}
		if err := p.guard(); err != nil { // another kthwd may have run here before the lock
			return err
		}
	}
	if err := selfbackup.KeepCopy(ctx, p.cfg, p.o.Version, p.o.OnWork, p.log); err != nil {
		return err
	}
	if err := p.ensurePKI(); err != nil {
		return err
	}
	if err := pki.RecordNames(p.layout); err != nil {
		return err
	}
	if p.socket, err = datadir.NewSockets(p.layout); err != nil {
		return err
	}
	p.beginRun()
	if p.identity, err = datadir.Identity(p.layout, p.cfg.Name); err != nil {
		return err
	}
	return p.commandLines()
}

// commandLines makes the command lines with the real paths.
func (p *prepared) commandLines() error {
	for path, data := range program.RunFiles(p.cfg, p.layout) {
		if _, err := p.writeRun(filepath.Base(path), data); err != nil {
			return err
		}
	}
	signer, data, err := pki.Signer(p.layout)
	if err == nil && data != nil {
		signer, err = p.writeRun(pki.SignerFile, data)
	}
	if err != nil {
		return err
	}
	lines, err := commands.Make(commands.Input{Config: p.cfg, Layout: p.layout, Socket: p.socket.Etcd, Signer: signer, Write: p.writeRun})
	if err != nil {
		return err
	}
	p.args = lines.Args
	p.takeEnvironment()
	p.programs, err = lines.Parse()
	return err
}

// takeEnvironment keeps inherited variables from the programs. It must come before the
// first HTTP request, and after the command lines, which name the kubeconfigs.
func (p *prepared) takeEnvironment() {
	for _, n := range environment.Take(cmdline.Servers(p.args)) {
		level := slog.LevelInfo
		if n.Warning {
			level = slog.LevelWarn
		}
		p.log.Log(context.Background(), level, n.Text, "variable", n.Name)
	}
}

// writeRun writes a file of the run directory.
func (p *prepared) writeRun(name string, data []byte) (path string, err error) {
	path = filepath.Join(p.layout.Run(), name)
	return path, os.WriteFile(path, data, 0o600)
}

// spec is what the files must fit.
func (p *prepared) spec() pki.Spec {
	spec := commands.Spec(p.cfg)
	spec.RenewExpired, spec.LeafLife = true, p.o.LeafLife
	return spec
}

// tell logs what the command lines became, and applies the user's --v.
func (p *prepared) tell(lines *commands.Lines) {
	for _, w := range lines.Warnings {
		p.log.Warn(w)
	}
	for _, o := range lines.Overrides {
		p.log.Info("flag overridden", "program", o.Program, "flag", o.Key, "was", support.CleanFlag(o.Key, o.Ours), "is", support.CleanFlag(o.Key, o.Users))
	}
	for name, n := range lines.Verbosity {
		if err := p.setVerbosity(name, n); err != nil {
			p.log.Warn("verbosity ignored", "program", name, "err", err)
		}
	}
}

func (p *prepared) close() {
	p.socket.Close()
	if p.lock != nil {
		_ = p.lock.Truncate(0) // the number may belong to another process by then
		p.lock.Close()
	}
}

func (p *prepared) ensurePKI() error {
	report, err := pki.Ensure(p.layout, p.spec())
	if len(report.Created) > 0 {
		p.log.Info("files made", "dir", p.layout.Dir, "count", len(report.Created))
		p.warnOfOwnCA(report.Created)
	}
	for _, w := range report.Warnings {
		p.log.Warn(w)
	}
	if p.renewed = report.Renewed; len(p.renewed) > 0 {
		p.log.Warn("expired certificates renewed", "files", strings.Join(p.renewed, ","), "old", p.layout.KeptCertificates())
	}
	return err
}

// warnOfOwnCA warns that one of several controllers has just made a CA of its own, which
// the other controllers do not trust.
func (p *prepared) warnOfOwnCA(created []string) {
	if len(p.cfg.InitialCluster) > 1 && slices.Contains(created, p.layout.CA()) {
		p.log.Warn("a CA was made here, and the other controllers need this very one",
			"hint", "kthwd pki init --controllers makes the files of all", "file", p.layout.CA(), "initial-cluster", strings.Join(p.cfg.InitialCluster, ","))
	}
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

// storagePrefix returns the prefix of kube-apiserver's keys in etcd.
func (p *prepared) storagePrefix() string {
	return cmp.Or(program.Value(p.args[program.APIServer], "etcd-prefix"), "/registry") // genericoptions.NewEtcdOptions
}

// usesShared reports whether the API server or etcd uses a file: the user's flags may name
// another.
func (p *prepared) usesShared(path string) bool {
	return slices.ContainsFunc(slices.Concat(p.args[program.APIServer], p.args[program.Etcd]), func(a program.Arg) bool { return a.Value == path })
}
