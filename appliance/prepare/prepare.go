// Package prepare makes everything right that must be right before the first component of a
// controller starts: the data directory and its lock, the files, the command lines.
//
//	p, err := prepare.Controller(ctx, cfg, prepare.Options{Logs: logs, …})
//	defer p.Close()
//
// A start that is refused has written nothing, and its error has all problems at once. An upgrade is
// copied, and an interrupted restore finished, before anything opens the data.
package prepare

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"kthwd/appliance/cmdline"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
	"kthwd/appliance/environment"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/logging"
	"kthwd/appliance/pki"
	"kthwd/appliance/preflight"
	"kthwd/appliance/program"
	"kthwd/appliance/selfbackup"
	"kthwd/appliance/support"
	"kthwd/appliance/tune"
	"kthwd/appliance/upstream"
)

// Options is the input of Run beside the configuration.
type Options struct {
	Logs     *logging.Logs
	Version  string        // kthwd's own
	Started  time.Time     // when the process began
	Metrics  string        // the address of metrics and status; empty for none
	LeafLife time.Duration // of the certificates that are made; 0 means a year
	Working  func()        // called from time to time in a long step; may be nil
}

// Prepared is the verified input of all components.
type Prepared struct {
	Config   config.Controller
	Layout   pki.Layout
	Socket   *datadir.Sockets
	Args     map[string][]program.Arg // the programs' command lines
	Programs *commands.Programs       // those command lines, parsed
	Identity string                   // of this controller as the holder of leases
	Run      *lastrun.Run             // the record of this run
	Renewed  []string                 // files with expired certificates that this start has renewed

	o    Options
	log  *slog.Logger
	lock *os.File
}

// Controller checks everything that is visible before a start, and reports all of its
// problems at once. Only then does it lock the data directory and make what is missing. The
// caller must call Close.
func Controller(ctx context.Context, cfg config.Controller, o Options) (_ *Prepared, err error) {
	p := &Prepared{Config: cfg, o: o, Layout: cfg.Layout(), log: o.Logs.Logger("kthwd")}
	defer func() {
		if err != nil {
			p.refused(err)
			p.Close()
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
func (p *Prepared) check() (err error) {
	if err := datadir.Usable(p.Layout); err != nil {
		return err
	}
	if datadir.Exists(p.Layout.Lock()) {
		if p.lock, err = datadir.Lock(p.Layout); err != nil {
			return err
		}
		if err := p.finishRestore(); err != nil {
			return err
		}
	}
	if err := datadir.NoLinks(p.Layout.AuditLog(), p.Layout.UnauthenticatedAuditLog()); err != nil {
		return err
	}
	if err := p.guard(); err != nil {
		return err
	}
	plan, err := pki.NewPlan(p.Layout, p.spec())
	var lines *commands.Lines
	if err == nil {
		lines, err = commands.Check(p.Config, plan)
	} else {
		err = errors.Join(err, commands.CheckWords(p.Config))
	}
	if err := errors.Join(preflight.EnoughLimits(program.Quota(p.Config)), preflight.Ports(p.Config, p.o.Metrics), selfbackup.CheckSettings(p.Config), err); err != nil {
		return err
	}
	p.tell(lines)
	p.warnOfLittleMemory()
	return nil
}

// warnOfLittleMemory names what the kernel would not: it ends the process without a word.
func (p *Prepared) warnOfLittleMemory() {
	if r := preflight.Memory(tune.UsableMemory()); r.Verdict == preflight.Fail {
		p.log.Warn("too little memory: the kernel is likely to end this process", "usable", r.Found, "needs-mib", preflight.NeedsMemory>>20, "hint", r.Do)
	}
}

// finishRestore ends a restore that was interrupted when it could no longer be undone.
func (p *Prepared) finishRestore() error {
	done, err := datadir.FinishRestore(p.Layout)
	if done {
		p.log.Info("the restore of a backup, which was interrupted, is finished", "dir", p.Layout.Dir)
	}
	return err
}

// beginRun reads the record of the run before, and begins that of this one.
func (p *Prepared) beginRun() {
	p.Run = lastrun.Begin(lastrun.In(p.Layout.Run()), lastrun.Start{
		Version: p.o.Version, Started: p.o.Started, Limit: tune.GroupMemory(), Needs: preflight.NeedsMemory, Log: p.log,
	})
}

// refused records a start that has failed, in a directory in which kthwd has run before.
func (p *Prepared) refused(err error) {
	if p.Run == nil && p.lock != nil {
		p.beginRun()
	}
	p.Run.End(err)
}

// guard refuses a directory that belongs to another member or to other versions.
func (p *Prepared) guard() error {
	peer := "https://" + net.JoinHostPort(p.Config.AdvertiseAddress, strconv.Itoa(p.Config.EtcdPeerPort))
	return errors.Join(etcdfiles.Guard(p.Layout, program.ParseUser(p.Config.EtcdArgs), etcdfiles.Versions(p.o.Version)),
		etcdfiles.GuardMember(p.Layout, p.Config.Name, peer))
}

// make makes what a start needs and what is missing, and the command lines with it.
func (p *Prepared) make(ctx context.Context) (err error) {
	if p.lock == nil {
		if p.lock, err = datadir.Lock(p.Layout); err != nil {
			return err
		}
		if err := p.guard(); err != nil { // another kthwd may have run here before the lock
			return err
		}
	}
	if err := selfbackup.KeepCopy(ctx, p.Config, p.o.Version, p.o.Working, p.log); err != nil {
		return err
	}
	if err := p.ensurePKI(); err != nil {
		return err
	}
	if err := pki.RecordNames(p.Layout); err != nil {
		return err
	}
	if p.Socket, err = datadir.NewSockets(p.Layout); err != nil {
		return err
	}
	p.beginRun()
	if p.Identity, err = datadir.Identity(p.Layout, p.Config.Name); err != nil {
		return err
	}
	return p.commandLines()
}

// commandLines makes the command lines with the real paths.
func (p *Prepared) commandLines() error {
	for path, data := range program.RunFiles(p.Config, p.Layout) {
		if _, err := p.WriteRun(filepath.Base(path), data); err != nil {
			return err
		}
	}
	signer, data, err := pki.Signer(p.Layout)
	if err == nil && data != nil {
		signer, err = p.WriteRun(pki.SignerFile, data)
	}
	if err != nil {
		return err
	}
	lines, err := commands.Make(commands.Input{Config: p.Config, Layout: p.Layout, Socket: p.Socket.Etcd, Signer: signer, Write: p.WriteRun})
	if err != nil {
		return err
	}
	p.Args = lines.Args
	p.takeEnvironment()
	p.Programs, err = lines.Parse()
	return err
}

// takeEnvironment keeps inherited variables from the programs. It must come before the
// first HTTP request, and after the command lines, which name the kubeconfigs.
func (p *Prepared) takeEnvironment() {
	for _, n := range environment.Take(cmdline.Servers(p.Args)) {
		level := slog.LevelInfo
		if n.Warning {
			level = slog.LevelWarn
		}
		p.log.Log(context.Background(), level, n.Text, "variable", n.Name)
	}
}

// WriteRun writes a file of the run directory.
func (p *Prepared) WriteRun(name string, data []byte) (path string, err error) {
	path = filepath.Join(p.Layout.Run(), name)
	return path, os.WriteFile(path, data, 0o600)
}

// spec is what the files must fit.
func (p *Prepared) spec() pki.Spec {
	spec := commands.Spec(p.Config)
	spec.RenewExpired, spec.LeafLife = true, p.o.LeafLife
	return spec
}

// tell logs what the command lines became, and applies the user's --v.
func (p *Prepared) tell(lines *commands.Lines) {
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

// Close removes the sockets and releases the data directory.
func (p *Prepared) Close() {
	p.Socket.Close()
	if p.lock != nil {
		_ = p.lock.Truncate(0) // the number may belong to another process by then
		p.lock.Close()
	}
}

func (p *Prepared) ensurePKI() error {
	report, err := pki.Ensure(p.Layout, p.spec())
	if len(report.Created) > 0 {
		p.log.Info("files made", "dir", p.Layout.Dir, "count", len(report.Created))
		p.warnOfOwnCA(report.Created)
	}
	for _, w := range report.Warnings {
		p.log.Warn(w)
	}
	if p.Renewed = report.Renewed; len(p.Renewed) > 0 {
		p.log.Warn("expired certificates renewed", "files", strings.Join(p.Renewed, ","), "old", p.Layout.KeptCertificates())
	}
	return err
}

// warnOfOwnCA warns that one of several controllers has just made a CA of its own, which
// the other controllers do not trust.
func (p *Prepared) warnOfOwnCA(created []string) {
	if len(p.Config.InitialCluster) > 1 && slices.Contains(created, p.Layout.CA()) {
		p.log.Warn("a CA was made here, and the other controllers need this very one",
			"hint", "kthwd pki init --controllers makes the files of all", "file", p.Layout.CA(), "initial-cluster", strings.Join(p.Config.InitialCluster, ","))
	}
}

// setVerbosity applies --v=n to a program and to the code that it shares with the others.
func (p *Prepared) setVerbosity(name string, n int) error {
	logs := p.o.Logs
	if name != program.Etcd && logs.Level(program.Kubernetes) > slog.Level(-n-1) {
		if err := logs.SetLevel(program.Kubernetes, upstream.VerbosityLevel(n)); err != nil {
			return err
		}
	}
	return logs.SetLevel(name, upstream.VerbosityLevel(n))
}
