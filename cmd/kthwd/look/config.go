package look

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/advice"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/appliance/explain"
	"kthwd/appliance/program"
	"kthwd/appliance/support"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// configOutputs are the formats of kthwd config --running.
var configOutputs = []string{"", "json", "args"}

func (a *app) configVerb(l *config.Loader) *cobra.Command {
	var running bool
	var output string
	cmd := &cobra.Command{
		Use:   "config [flags]",
		Short: "Print the resulting configuration and each value's origin",
		Long: "Print the configuration that a start with these flags would use, in the form of a\n" +
			"configuration file, each value with its origin: default, FILE:LINE or flag. With a role,\n" +
			"print the settings of that role, otherwise all. Problems follow on standard error, with\n" +
			"exit code 2: also what a program would refuse of its flags and of the files they name.\n\n" +
			"With --running, print the configuration of the running kthwd, and mark what has changed in\n" +
			"its file since it started. -o args prints the command lines of the embedded programs.",
		Example: "  kthwd config\n  kthwd config --role=controller --config=/etc/kthwd/kthwd.yaml\n  kthwd config --role=lb --backend=10.0.1.73:6443\n  kthwd config --running -o args",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case !slices.Contains(configOutputs, output):
				return cli.Usagef("--output %q is no format: want json or args", output)
			case running:
				return a.showRunning(cmd.Context(), l, output)
			case output != "":
				return advice.With(cli.Usagef("--output without --running"), "kthwd config prints the form of a configuration file")
			}
			return a.config(l)
		},
	}
	l.AddFlags(cmd.Flags())
	cmd.Flags().BoolVar(&running, "running", false, "Print the configuration of the running kthwd.")
	cmd.Flags().StringVarP(&output, "output", "o", "", "`FORMAT` Format of the output of --running: json, or args for the command lines of the embedded programs; empty means the form of a configuration file.")
	cmd.AddCommand(a.configDiffVerb(l))
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(configOutputs[1:], cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (a *app) config(l *config.Loader) error {
	if err := l.Load(); err != nil {
		return err
	}
	if err := l.Resolve(); err != nil {
		return err
	}
	if err := l.Print(a.Out); err != nil {
		return err
	}
	if err := a.writeProfile(l); err != nil {
		return err
	}
	if len(l.Config.Role) == 0 {
		return l.ValidateWithoutRole() // printing a configuration requires no role
	}
	if err := l.Validate(); err != nil || !l.Config.Is(config.RoleController) {
		return err
	}
	return commands.CheckConfiguration(l.Config.Controller)
}

// writeProfile writes what the profile sets. What is wrong with the configuration is said later.
func (a *app) writeProfile(l *config.Loader) error {
	if c := l.Config; c.Is(config.RoleLB) && !c.Is(config.RoleController) {
		return nil
	}
	lines, err := commands.Offline(l.Config.Controller)
	if err != nil {
		return nil
	}
	_, err = a.Out.Write(profileLines(explain.All(explainInput(l, lines, lines.Args))))
	return err
}

// running is the configuration of this process, compared with what a start with the same
// command line would read now.
func (a *app) running(l *config.Loader, args map[string][]program.Arg) support.Running {
	r := support.Running{PID: os.Getpid(), File: l.File(), Settings: l.Values(), Programs: map[string][]string{}}
	if r.File != "" {
		r.File = cli.Absolute(r.File)
	}
	for name, flags := range args {
		r.Programs[name] = program.Render(flags)
	}
	if args != nil {
		r.Explained = explainRunning(l, args)
	}
	next := config.NewLoader()
	fs := pflag.NewFlagSet("kthwd", pflag.ContinueOnError)
	next.AddFlags(fs)
	err := fs.Parse(a.Args)
	if err == nil {
		err = cli.Read(next)
	}
	if err != nil {
		r.Problem = text.Joined(err.Error())
		return r
	}
	r.Settings = l.Compared(next)
	return r
}

func (a *app) showRunning(ctx context.Context, l *config.Loader, output string) error {
	c, err := a.Target(l)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := cli.AskRunning(ctx, c)
	if err != nil {
		return c.Explain(err)
	}
	switch output {
	case "json":
		return cli.WriteJSON(a.Out, r)
	case "args":
		_, err = a.Out.Write(programLines(r))
		return err
	}
	if _, err := a.Out.Write(runningText(r)); err != nil {
		return err
	}
	if r.Problem != "" {
		a.Warn("a start would fail now: " + r.Problem)
	}
	return nil
}

// runningText is the configuration in the form of a file.
func runningText(r support.Running) []byte {
	head := fmt.Sprintf("# in force in process %d", r.PID)
	if r.File != "" {
		head += ", which has read " + text.Line(r.File)
	}
	changed := slices.DeleteFunc(slices.Clone(r.Settings), func(v config.Value) bool { return v.Remark == "" })
	if n := len(changed); n > 0 {
		head += fmt.Sprintf("\n# %d changed in the file since the start: restart kthwd to apply them", n)
	}
	return append(append([]byte(head+"\n"), config.Render(r.Settings)...), profileLines(r.Explained)...)
}

// profileLines are, as comments, the flags whose origin is a profile: no setting shows them.
func profileLines(all []explain.Program) []byte {
	var lines []string
	profile := ""
	for _, p := range all {
		for _, f := range p.Flags {
			if f.Origin == explain.OriginProfile {
				profile = f.Where
				lines = append(lines, fmt.Sprintf("# %s --%s=%s", p.Name, f.Key, f.Value))
			}
		}
		for _, f := range p.LeftOut {
			if key, _, _ := strings.Cut(strings.TrimPrefix(f.Flag, "--"), "="); f.Of == explain.OriginGuide && slices.Contains(program.OfProfile(p.Name), key) {
				lines = append(lines, fmt.Sprintf("# %s without %s", p.Name, f.Flag))
			}
		}
	}
	if profile == "" {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# flags of the programs with the origin profile %s; kthwd explain prints all flags\n", text.Line(profile))
	for _, line := range lines {
		b.WriteString(text.Line(line) + "\n")
	}
	return []byte(b.String())
}

// programLines are the command lines of the embedded programs, one flag a line.
func programLines(r support.Running) []byte {
	var b strings.Builder
	for i, name := range explain.Names() {
		if r.Programs[name] == nil {
			continue
		}
		if i > 0 {
			b.WriteString("\n")
		}
		b.WriteString(name)
		for _, arg := range r.Programs[name] {
			b.WriteString(" \\\n  " + text.ShellWord(text.Line(arg)))
		}
		b.WriteString("\n")
	}
	return []byte(b.String())
}
