package look

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/appliance/explain"
	"kthwd/appliance/program"
	"kthwd/cmd/kthwd/cli"
)

// explainOutputs are the formats of kthwd explain.
var explainOutputs = []string{"", "shell", "unit", "json"}

// explainFlags are the flags of kthwd explain that no other verb has.
type explainFlags struct {
	running      bool
	output, diff string
}

func (a *app) explainVerb(l *config.Loader) *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain [PROGRAM] [flags]",
		Short: "Print the programs' command lines and each flag's origin",
		Long: "Print the command line that each embedded program has in a start with these flags, or that\n" +
			"of one PROGRAM, each flag with its origin: guide, profile, kthwd or yours. It reads the configuration\n" +
			"and needs no running kthwd; with --running it asks the running one.\n\n" +
			"-o shell prints command lines for sh, -o unit systemd units, for people and scanners to read.",
		Example:   "  kthwd explain\n  kthwd explain kube-apiserver --diff guide\n  kthwd explain etcd -o unit\n  kthwd explain --running -o json",
		ValidArgs: explain.Names(),
		Args:      oneProgram,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			all, err := a.explained(cmd.Context(), l, f.running)
			if err != nil {
				return err
			}
			return f.write(a.Out, only(all, args))
		},
	}
	l.AddFlags(cmd.Flags())
	cmd.Flags().BoolVar(&f.running, "running", false, "Explain the command lines of the running kthwd.")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`FORMAT` Format of the output: shell, unit or json; empty means text.")
	cmd.Flags().StringVar(&f.diff, "diff", "", "`WITH` Print the difference from another command line: guide.")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(explainOutputs[1:], cobra.ShellCompDirectiveNoFileComp)))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("diff", cobra.FixedCompletions([]string{"guide"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// oneProgram refuses anything but the name of at most one program.
func oneProgram(_ *cobra.Command, args []string) error {
	names := "programs: " + strings.Join(explain.Names(), ", ")
	switch {
	case len(args) > 1:
		return advice.With(cli.Usagef("explain: want at most one program, got %d", len(args)), names)
	case len(args) == 1 && !slices.Contains(explain.Names(), args[0]):
		if near := config.Nearest(args[0], explain.Names()); near != "" {
			names = "did you mean " + near + "?"
		}
		return advice.With(cli.Usagef("explain: %q is no program", args[0]), names)
	}
	return nil
}

// only leaves the program that was asked for.
func only(all []explain.Program, names []string) []explain.Program {
	if len(names) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(p explain.Program) bool { return p.Name != names[0] })
}

func (f explainFlags) check() error {
	switch {
	case !slices.Contains(explainOutputs, f.output):
		return cli.Usagef("--output %q is no format: want shell, unit or json", f.output)
	case f.diff != "" && f.diff != "guide":
		return cli.Usagef("--diff %q is no command line to compare with: want guide", f.diff)
	case f.diff != "" && f.output != "":
		return advice.With(cli.Usagef("--diff and --output exclude each other"), "-o json has the guide's flag beside each one")
	}
	return nil
}

// explained are the command lines of a start, or of the running kthwd.
func (a *app) explained(ctx context.Context, l *config.Loader, running bool) ([]explain.Program, error) {
	if running {
		return a.askExplained(ctx, l)
	}
	lines, err := a.offline(l)
	if err != nil {
		return nil, err
	}
	return explain.All(explainInput(l, lines, lines.Args)), nil
}

// explainRunning explains the command lines of this process.
func explainRunning(l *config.Loader, args map[string][]program.Arg) []explain.Program {
	lines, err := commands.Offline(l.Config.Controller)
	if err != nil { // a start has made the same command lines without an error
		lines = &commands.Lines{}
	}
	return explain.All(explainInput(l, lines, args))
}

func explainInput(l *config.Loader, lines *commands.Lines, args map[string][]program.Arg) explain.Input {
	c := l.Config.Controller
	in := explain.Input{Args: args, Users: lines.Users, Overrides: lines.Overrides, Where: map[string]string{},
		Profile: c.Profile, Profiled: commands.Profiled(c)}
	for _, name := range explain.Names() {
		in.Where[name] = l.Origin(name + "-arg")
	}
	return in
}

func (a *app) askExplained(ctx context.Context, l *config.Loader) ([]explain.Program, error) {
	c, err := a.Target(l)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := cli.AskRunning(ctx, c)
	switch {
	case err != nil:
		return nil, c.Explain(err)
	case r.Programs == nil:
		return nil, advice.With(fmt.Errorf("process %d is a load balancer: it runs none of the programs", r.PID), "kthwd config --running prints its settings")
	case r.Explained == nil:
		return nil, advice.With(fmt.Errorf("process %d is an older kthwd, which does not explain its command lines", r.PID), "kthwd config --running -o args prints them")
	}
	return r.Explained, nil
}

// write writes the programs in the format that was asked for.
func (f explainFlags) write(w io.Writer, all []explain.Program) error {
	if f.output == "json" {
		return cli.WriteJSON(w, all)
	}
	one := map[string]func(io.Writer, explain.Program) error{"": explain.Text, "shell": explain.Shell, "unit": explain.Unit}[f.output]
	if f.diff != "" {
		one = explain.Diff
	}
	var b bytes.Buffer
	for i, p := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		if err := one(&b, p); err != nil {
			return err
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}
