package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/config"
)

// newRoot makes the command line. The verbs share one loader, for only one of
// them runs.
func (a *app) newRoot() *cobra.Command {
	l := config.NewLoader()
	root := &cobra.Command{
		Use:     "kthwd",
		Short:   "kthwd runs the Kubernetes control plane, the hard way, as one daemon, or the load balancer in front of several.",
		Example: "  kthwd --role=controller\n  kthwd --role=lb --backend=10.0.1.73:6443 --backend=10.0.1.35:6443\n  kthwd status",
		Args:    noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if only, _ := cmd.Flags().GetBool("version"); only {
				return a.version(false)
			}
			return a.serve(cmd.Context(), l)
		},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return l.FlagError(err) })
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { a.help(cmd, l) })
	root.SetHelpCommand(helpVerb())
	l.AddFlags(root.Flags())
	root.Flags().Bool("version", false, "The same as kthwd version.")
	// Kubernetes has one of its own for all programs (component-base/version/verflag), which cobra shows with each verb.
	if f := pflag.CommandLine.Lookup("version"); f != nil {
		f.Hidden = true
	}
	for _, name := range l.Names() {
		if values := config.Values(name); values != nil {
			cobra.CheckErr(root.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
		}
	}
	root.AddCommand(a.statusVerb(l), a.etcdVerb(l), a.configVerb(l), a.pkiVerb(l), a.memberVerb(l), a.joinVerb(l), a.logLevelVerb(l), a.versionVerb(), a.completionVerb(), a.preflightVerb(l), a.generateVerb())
	return root
}

// helpVerb is kthwd help VERB, the same as kthwd VERB --help.
func helpVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "help [VERB]",
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return noVerb(cmd.Root(), args)
			}
			return about.Help()
		},
	}
}

// noVerb refuses what follows a command that only has verbs and flags.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usagef("%s takes no argument, got %q", cmd.CommandPath(), args[0])
	}
	cmd.SuggestionsMinimumDistance = 2
	u := usagef("unknown verb %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		u.hint = fmt.Sprintf("did you mean %s %s?", cmd.CommandPath(), near[0])
	} else {
		u.hint = "verbs: " + strings.Join(verbs(cmd), ", ")
	}
	return u
}

// wantArgs refuses another number of arguments; usage says what they are.
func wantArgs(least, most int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		u := usagef("%s: got %d arguments", cmd.CommandPath(), len(args))
		u.hint = "usage: " + strings.TrimSpace(cmd.CommandPath()+" "+usage)
		return u
	}
}

func verbs(cmd *cobra.Command) (names []string) {
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	return names
}

// help writes the help text of a command to standard output.
func (a *app) help(cmd *cobra.Command, l *config.Loader) {
	width := min(terminalWidth(a.out, 100), 120)
	var b strings.Builder
	text := cmd.Long
	if text == "" {
		text = cmd.Short
	}
	fmt.Fprintf(&b, "%s\n\nUsage:\n", text)
	if cmd.HasParent() {
		fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	} else {
		fmt.Fprintf(&b, "  kthwd --role=controller [flags]\n  kthwd --role=lb --backend=HOST:PORT... [flags]\n  kthwd VERB [flags]\n")
	}
	if cmd.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
	}
	if names := verbs(cmd); len(names) > 0 {
		b.WriteString("\nVerbs:\n")
		for _, c := range cmd.Commands() {
			if !c.Hidden {
				fmt.Fprintf(&b, "  %-12s %s\n", c.Name(), c.Short)
			}
		}
	}
	switch {
	case !cmd.HasParent():
		fmt.Fprintf(&b, "\n%s", strings.TrimSuffix(l.Usage(width), "\n"))
	case cmd.HasAvailableFlags():
		cmd.InitDefaultHelpFlag()
		cmd.Flags().Lookup("help").Hidden = true
		fmt.Fprintf(&b, "\nFlags:\n%s", config.FlagUsage(cmd.Flags(), width))
	}
	fmt.Fprint(a.out, b.String())
}
