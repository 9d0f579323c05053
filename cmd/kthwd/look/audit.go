package look

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/audit"
	"kthwd/appliance/commands"
	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// auditFlags are the flags of kthwd audit that no other verb has.
type auditFlags struct {
	standards     []string
	level, output string
}

func (a *app) auditVerb(l *config.Loader) *cobra.Command {
	f := auditFlags{level: audit.LevelAutomated}
	cmd := &cobra.Command{
		Use:   "audit [flags]",
		Short: "Judge flags and files by the CIS, NSA and STIG rules",
		Long: "Judge the command lines that the programs have in a start with these flags, and the files of\n" +
			"the data directory, by the control plane's rules of the CIS benchmark, of the NSA's and CISA's\n" +
			"guidance and of the STIG. It needs no running kthwd. pass* meets a rule's aim in another way\n" +
			"than its words. The exit code is 1 if a rule fails that the level asks for.",
		Example: "  kthwd audit\n  kthwd audit --profile=cis --standard=cis\n  kthwd audit --level=all -o json",
		Args:    cli.NoVerb,
		RunE:    func(*cobra.Command, []string) error { return a.audit(l, f) },
	}
	l.AddFlags(cmd.Flags())
	cmd.Flags().StringSliceVar(&f.standards, "standard", nil, "`NAME` Standards whose rules are judged: "+strings.Join(audit.Standards(), ", ")+"; without it all.")
	cmd.Flags().StringVar(&f.level, "level", f.level, "`LEVEL` Rules of which none may fail: automated, which the standard decides by a command, all, or none.")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`FORMAT` Format of the output: json; empty means tables.")
	for name, values := range map[string][]string{"standard": audit.Standards(), "level": audit.Levels(), "output": {"json"}} {
		cobra.CheckErr(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
	}
	return cmd
}

func (f auditFlags) check() (asJSON bool, err error) {
	for _, s := range f.standards {
		if !slices.Contains(audit.Standards(), s) {
			return false, advice.With(cli.Usagef("--standard %q is not known", s), "standards: "+strings.Join(audit.Standards(), ", "))
		}
	}
	if !slices.Contains(audit.Levels(), f.level) {
		return false, advice.With(cli.Usagef("--level %q is not known", f.level), "levels: "+strings.Join(audit.Levels(), ", "))
	}
	return cli.CheckOutput(f.output)
}

// audited is the output as JSON.
type audited struct {
	Profile string                  `json:"profile"`
	Level   string                  `json:"level"`
	Passes  bool                    `json:"passes"` // at the level
	Counts  map[string]audit.Counts `json:"counts"` // by standard
	Results []audit.Result          `json:"results"`
}

func (a *app) audit(l *config.Loader, f auditFlags) error {
	asJSON, err := f.check()
	if err != nil {
		return err
	}
	lines, err := a.offline(l)
	if err != nil {
		return err
	}
	c := l.Config.Controller
	results := audit.Run(audit.Input{Config: c, File: l.File(), Args: lines.Args}, f.standards...)
	passes := audit.Passes(results, f.level)
	if asJSON {
		out := audited{Profile: c.Profile, Level: f.level, Passes: passes, Counts: map[string]audit.Counts{}, Results: results}
		for _, r := range results {
			out.Counts[r.Standard] = audit.Count(results, r.Standard)
		}
		err = cli.WriteJSON(a.Out, out)
	} else {
		err = audit.Text(a.Out, results, cli.Painter(a.Out))
	}
	if err == nil && !passes {
		return cli.ErrDegraded // the table says which
	}
	return err
}

// offline makes the command lines that a start of a controller with these flags would use.
func (a *app) offline(l *config.Loader) (*commands.Lines, error) {
	if err := l.Load(); err != nil {
		return nil, err
	}
	if l.Config.Is(config.RoleLB) && !l.Config.Is(config.RoleController) {
		return nil, advice.With(cli.Usagef("a load balancer runs none of the programs"), "kthwd config prints its settings")
	}
	if err := l.ResolveController(); err != nil {
		return nil, err
	}
	if err := l.ValidateController(); err != nil {
		return nil, err
	}
	lines, err := commands.Offline(l.Config.Controller)
	if err != nil {
		return nil, err
	}
	for _, w := range lines.Warnings {
		a.Warn(w)
	}
	return lines, nil
}
