package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/config"
	backupverbs "kthwd/cmd/kthwd/backup"
	"kthwd/cmd/kthwd/cli"
	etcdverbs "kthwd/cmd/kthwd/etcd"
	keysverbs "kthwd/cmd/kthwd/keys"
	lookverbs "kthwd/cmd/kthwd/look"
	membersverbs "kthwd/cmd/kthwd/members"
	moveverbs "kthwd/cmd/kthwd/move"
	upgradeverbs "kthwd/cmd/kthwd/upgrade"
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
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if only, _ := cmd.Flags().GetBool("version"); only {
				return lookverbs.WriteVersion(a.App)
			}
			return a.serve(cmd.Context(), l)
		},
		PersistentPreRun: a.CloseMemoryOf,

		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(a.Out)
	root.SetErr(a.Err)
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
			a.preflightVerb(l), moveverbs.Adopt(a.App), lookverbs.Config(a.App, l), lookverbs.Explain(a.App, l), moveverbs.Eject(a.App, l), lookverbs.LogLevel(a.App, l),
			lookverbs.Status(a.App, l), a.tryVerb(), a.kubectlVerb(l), a.programVerb(), lookverbs.Audit(a.App, l), lookverbs.Support(a.App, l), lookverbs.Version(a.App), a.completionVerb(),
		}},
		{"Membership, backup and upgrade", []*cobra.Command{
			membersverbs.Member(a.App, l), membersverbs.Join(a.App, l), membersverbs.Node(a.App, l), etcdverbs.Verb(a.App, l),
			backupverbs.Verb(a.App, l), upgradeverbs.Verb(a.App, l),
		}},
		{"Certificates and keys", []*cobra.Command{keysverbs.PKI(a.App, l), keysverbs.Encryption(a.App, l), membersverbs.Kubeconfig(a.App, l)}},
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
