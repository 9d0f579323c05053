package move

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/advice"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/appliance/eject"
	"kthwd/appliance/environment"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/support"
	"kthwd/appliance/text"
	linked "kthwd/appliance/version"
	"kthwd/cmd/kthwd/cli"
)

// ejectNames are the values of --names.
var ejectNames = []string{eject.Upstream, eject.Kthwd}

// ejectFlags are the flags of kthwd eject that no other verb has.
type ejectFlags struct {
	out, names, binDir, configDir string
	running                       bool
}

func (a *app) ejectVerb(l *config.Loader) *cobra.Command {
	var f ejectFlags
	cmd := &cobra.Command{
		Use:   "eject --out=DIR [flags]",
		Short: "Write units and nginx's files that go on without kthwd",
		Long: "Write what this controller or load balancer needs to go on without kthwd: systemd units of the\n" +
			"four programs on the same data, nginx's files for the health bridge and the balancer, and a\n" +
			"README.txt with the commands and with all that is lost. Nothing outside DIR changes, no key is\n" +
			"copied, and kthwd may run meanwhile. The configuration is that of a start with these flags, or\n" +
			"with --running that of the running kthwd.",
		Example: "  kthwd eject --out=ejected\n  kthwd eject --running --names=kthwd --out=ejected\n  kthwd eject --role=lb --config=/etc/kthwd/lb.yaml --out=ejected",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.eject(cmd.Context(), l, f)
		},
	}
	l.AddFlags(cmd.Flags())
	cmd.Flags().StringVar(&f.out, "out", "", "`DIR` Directory for the files. It must be new or empty.")
	cmd.Flags().StringVar(&f.names, "names", eject.Upstream, "`WHOSE` Programs that the units run: upstream's own binaries, or the links to kthwd that its packages have (kthwd).")
	cmd.Flags().StringVar(&f.binDir, "bin-dir", "", "`DIR` Directory of the programs; empty means "+eject.BinDir(eject.Upstream)+", or "+eject.BinDir(eject.Kthwd)+" with --names=kthwd.")
	cmd.Flags().StringVar(&f.configDir, "config-dir", eject.ConfigDir, "`DIR` Directory in which the units expect the files of DIR/config.")
	cmd.Flags().BoolVar(&f.running, "running", false, "Take the configuration and the variables of the running kthwd.")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("names", cobra.FixedCompletions(ejectNames, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (f ejectFlags) check() error {
	switch {
	case f.out == "":
		return advice.With(cli.Usagef("eject: --out is missing"), "name a new directory, such as --out=ejected")
	case !slices.Contains(ejectNames, f.names):
		return cli.Usagef("--names %q names no programs: want %s", f.names, strings.Join(ejectNames, " or "))
	}
	for name, dir := range map[string]string{"bin-dir": f.binDir, "config-dir": f.configDir} {
		if dir != "" && !filepath.IsAbs(dir) || name == "config-dir" && dir == "" {
			return cli.Usagef("--%s %q: a unit needs an absolute path", name, dir)
		}
	}
	return nil
}

func (a *app) eject(ctx context.Context, l *config.Loader, f ejectFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	if err := eject.CheckOut(f.out); err != nil {
		return advice.Usage(err)
	}
	out, err := filepath.Abs(f.out)
	if err != nil {
		return err
	}
	var running *support.Running
	if f.running {
		l, running, err = a.inForce(ctx, l)
	} else {
		err = l.Load()
	}
	if err != nil {
		return err
	}
	in, err := a.handedOver(l, running)
	if err != nil {
		return err
	}
	v := linked.Linked()
	in.Names, in.BinDir, in.ConfigDir, in.Out = f.names, f.binDir, f.configDir, out
	in.Kthwd, in.Kubernetes, in.Etcd = cli.Version, v.Kubernetes, v.Etcd
	files, err := eject.Make(in)
	if err != nil {
		return err
	}
	if err := eject.Write(out, files); err != nil {
		return err
	}
	for _, file := range files {
		fmt.Fprintf(a.Out, "made  %s\n", text.Line(filepath.Join(out, file.Path)))
	}
	return nil
}

// inForce is the configuration of the running kthwd.
func (a *app) inForce(ctx context.Context, l *config.Loader) (*config.Loader, *support.Running, error) {
	c, err := a.Target(l)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := cli.AskRunning(ctx, c)
	if err != nil {
		return nil, nil, c.Explain(err)
	}
	if r.Programs != nil && r.Explained == nil {
		return nil, nil, advice.With(fmt.Errorf("process %d is an older kthwd, which does not tell its command lines", r.PID), "restart it, or leave out --running")
	}
	file, err := os.CreateTemp("", "kthwd-eject-*.yaml")
	if err != nil {
		return nil, nil, err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(config.Render(r.Settings))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, nil, err
	}
	running, flags := config.NewLoader(), pflag.NewFlagSet("kthwd", pflag.ContinueOnError)
	running.AddFlags(flags)
	if err := flags.Parse([]string{"--config=" + file.Name()}); err != nil {
		return nil, nil, err
	}
	return running, &r, running.Load()
}

// handedOver is what goes on without kthwd: of a start with the loaded configuration, or of
// the running process.
func (a *app) handedOver(l *config.Loader, running *support.Running) (in eject.Input, err error) {
	if len(l.Config.Role) == 0 {
		l.Config.Role = []string{config.RoleController}
	}
	if err := l.Resolve(); err != nil {
		return in, err
	}
	if err := l.Validate(); err != nil {
		return in, err
	}
	in.Config = l.Config
	if !l.Config.Is(config.RoleController) {
		return in, nil
	}
	if err := ofThisMinor(l.Config.Controller.Layout()); err != nil && !errors.Is(err, fs.ErrPermission) {
		return in, err
	}
	lines, files, err := commands.OfflineFiles(l.Config.Controller)
	if err != nil && !errors.Is(err, fs.ErrPermission) { // Make says what to do about that
		return in, err
	}
	for _, w := range lines.Warnings {
		a.Warn(w)
	}
	in.Args, in.Files, in.Verbosity = lines.Args, files, lines.Verbosity
	if running != nil {
		for _, p := range running.Explained {
			in.Args[p.Name] = nil
			for _, f := range p.Flags {
				in.Args[p.Name] = append(in.Args[p.Name], program.Arg{Key: f.Key, Value: f.Value})
			}
		}
		in.Variables = a.variablesOf(running.PID, in.Args)
	}
	return in, nil
}

// ofThisMinor refuses data that another minor of Kubernetes or etcd has served last. The units and README.txt
// would name this kthwd's: older programs cannot read newer data, and newer ones open older data without a copy.
func ofThisMinor(l pki.Layout) error {
	r, err := etcdfiles.ReadRecord(l)
	if err != nil || r == nil {
		return err
	}
	was, now := r.Latest(), etcdfiles.Versions(cli.Version)
	for _, p := range []struct{ program, was, is string }{{"Kubernetes", was.Kubernetes, now.Kubernetes}, {"etcd", was.Etcd, now.Etcd}} {
		steps, known := etcdfiles.Steps(p.was, p.is)
		if !known || steps == 0 {
			continue
		}
		hint := "run eject of that kthwd, " + was.Kthwd
		if steps > 0 {
			hint += "; or start this one first, which copies the data before it opens them"
		}
		return advice.With(fmt.Errorf("%s was last run with %s %s, and this kthwd has %s: the units would be for other versions than the data", l.Dir, p.program, p.was, p.is), hint)
	}
	return nil
}

// variablesOf are the variables of the running kthwd that the programs need.
func (a *app) variablesOf(pid int, args map[string][]program.Arg) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		a.Warn(fmt.Sprintf("the variables of process %d are not known (%v): the units set none", pid, err))
		return nil
	}
	return environment.Handed(strings.Split(string(data), "\x00"), cmdline.Servers(args))
}
