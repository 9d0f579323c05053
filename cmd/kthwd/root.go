package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
)

// newRoot makes the command line. The verbs share one loader, because only one of
// them runs.
func (a *app) newRoot() *cobra.Command {
	l := config.NewLoader()
	root := &cobra.Command{
		Use:     "kthwd",
		Short:   "kthwd runs the Kubernetes control plane, the hard way, as one daemon, or the load balancer in front of several.",
		Long:    "kthwd runs the Kubernetes control plane, the hard way, as one daemon, or the\nload balancer in front of several.",
		Example: "  kthwd --role=controller\n  kthwd --role=lb --backend=10.0.1.73:6443 --backend=10.0.1.35:6443\n  kthwd status",
		Args:    noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if only, _ := cmd.Flags().GetBool("version"); only {
				return a.version(false)
			}
			return a.serve(cmd.Context(), l)
		},
		PersistentPreRun: a.closeMemoryOf,

		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return l.FlagError(err) })
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { a.help(cmd, l) })
	root.SetHelpCommand(a.helpVerb(l))
	l.AddFlags(root.Flags())
	root.Flags().Bool("version", false, "Same as kthwd version.")
	// Kubernetes registers a global --version (component-base/version/verflag), which cobra would show with each verb.
	if f := pflag.CommandLine.Lookup("version"); f != nil {
		f.Hidden = true
	}
	for _, name := range l.Names() {
		if values := config.Values(name); values != nil {
			cobra.CheckErr(root.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
		}
	}
	cobra.EnablePrefixMatching = false // which etcdctl turns on while it is initialised
	cobra.EnableCommandSorting = false // help lists verbs in the order of this table
	for _, group := range []struct {
		title string
		verbs []*cobra.Command
	}{
		{"Run and look", []*cobra.Command{
			a.preflightVerb(l), a.adoptVerb(), a.configVerb(l), a.explainVerb(l), a.ejectVerb(l), a.logLevelVerb(l),
			a.statusVerb(l), a.tryVerb(), a.kubectlVerb(l), a.programVerb(), a.auditVerb(l), a.supportVerb(l), a.versionVerb(), a.completionVerb(),
		}},
		{"Membership, backup and upgrade", []*cobra.Command{
			a.memberVerb(l), a.joinVerb(l), a.nodeVerb(l), a.etcdVerb(l),
			a.backupVerb(l), a.upgradeVerb(l),
		}},
		{"Certificates and keys", []*cobra.Command{a.pkiVerb(l), a.encryptionVerb(l), a.kubeconfigVerb(l)}},
	} {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title})
		for _, verb := range group.verbs {
			verb.GroupID = group.title
		}
		root.AddCommand(group.verbs...)
	}
	root.AddCommand(a.generateVerb(), a.endedVerb(l))
	return root
}

// noVerb refuses an argument of a command that takes only verbs and flags.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usagef("%s takes no argument, got %q", cmd.CommandPath(), args[0])
	}
	err := usagef("unknown verb %q", args[0])
	if near := nearestVerb(cmd, args[0]); near != "" {
		return advice.With(err, fmt.Sprintf("did you mean %s %s?", cmd.CommandPath(), near))
	}
	if role := rolesIn(args[0]); role != nil && !cmd.HasParent() {
		return advice.With(err, fmt.Sprintf("run it with kthwd --role=%s; kthwd help %[1]s lists its flags", args[0]))
	}
	return advice.With(err, "verbs: "+strings.Join(verbs(cmd), ", "))
}

// group is a command that only groups verbs.
func group(name, short string) *cobra.Command {
	return &cobra.Command{Use: name + " VERB", Short: short, Args: noVerb, RunE: noVerbGiven}
}

// noVerbGiven is the run of a command that only groups verbs.
func noVerbGiven(cmd *cobra.Command, _ []string) error {
	return advice.With(usagef("%s: no verb given", cmd.Name()), "verbs: "+strings.Join(verbs(cmd), ", "))
}

// nearestVerb is the verb of cmd that a misspelled name most likely meant, or "".
func nearestVerb(cmd *cobra.Command, name string) string {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return near[0]
	}
	return ""
}

// wantArgs refuses a wrong number of arguments; usage names the right ones.
func wantArgs(least, most int, usage string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		return advice.With(usagef("%s: got %d arguments", cmd.CommandPath(), len(args)), "usage: "+strings.TrimSpace(cmd.CommandPath()+" "+usage))
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
