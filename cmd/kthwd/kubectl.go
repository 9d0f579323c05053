package main

import (
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/names"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// kubectlVerb is kthwd kubectl for help and completion; main has run the others.
func (a *app) kubectlVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubectl [flags] [ARGUMENT...]",
		Short: "Run kubectl as the admin of the data directory",
		Long: "Run kubectl, which is built in, with the arguments as they are. Its kubeconfig is\n" +
			"admin.kubeconfig in the data directory, or where a kthwd that runs on this machine has it;\n" +
			"--kubeconfig and KUBECONFIG replace it. The two flags below come before kubectl's own.",
		Example: "  kthwd kubectl get nodes\n  kthwd kubectl --data-dir=.kthwd apply -f deployment.yaml",

		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Contains(args, "--help") {
				return cmd.Help()
			}
			return advice.With(cli.Usagef("kubectl: only --data-dir and --config may stand before it"), "put kubectl's own flags after it: kthwd kubectl get nodes")
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

// programVerb is kthwd program for help and completion; main has run the others.
func (a *app) programVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "program NAME [ARGUMENT...]",
		Short: "Run a program of upstream's: etcd, kubectl, kube-apiserver",
		Long: "Run one of upstream's programs with the arguments as they are:\n" + strings.Join(names.All, ", ") + ".\n" +
			"A link to kthwd with one of these names is the same. Nothing of kthwd runs beside it.",
		Example:   "  kthwd program kube-apiserver --version\n  ln -s /usr/bin/kthwd /usr/local/bin/kubectl",
		ValidArgs: names.All,

		DisableFlagParsing:    true,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.Contains(args, "--help") || slices.Contains(args, "-h") {
				return cmd.Help()
			}
			hint := "programs: " + strings.Join(names.All, ", ")
			if len(args) == 0 {
				return advice.With(cli.Usagef("program: no name given"), hint)
			}
			if near := config.Nearest(args[0], names.All); near != "" {
				hint = "did you mean " + near + "?"
			}
			return advice.With(cli.Usagef("program: %q is no program", args[0]), hint)
		},
	}
}

// findKubeconfig puts the admin's kubeconfig into the environment of a kubectl that has
// none. Without one, only commands that need no cluster may go on: kubectl would take the
// kubeconfig of another cluster from the home directory.
func (a *app) findKubeconfig(call names.Call) error {
	args := call.Args[1:]
	needs := names.NeedsCluster(args)
	if os.Getenv("KUBECONFIG") != "" || names.NamesKubeconfig(args) || !needs && !names.Completes(args) {
		return nil
	}
	path, err := a.adminKubeconfig(call.Own)
	switch {
	case err == nil:
		return os.Setenv("KUBECONFIG", path)
	case needs:
		return err
	}
	return os.Setenv("KUBECONFIG", os.DevNull) // completion without names of objects
}

// adminKubeconfig is the path of admin.kubeconfig in the data directory, which the flags of
// kthwd and its file say as for other verbs.
func (a *app) adminKubeconfig(own []string) (string, error) {
	l := config.NewLoader()
	flags := pflag.NewFlagSet("kubectl", pflag.ContinueOnError)
	l.AddFlags(flags, "config", "data-dir")
	if err := flags.Parse(own); err != nil {
		return "", l.FlagError(err)
	}
	t, err := a.Target(l)
	if err != nil {
		return "", err
	}
	path := t.Layout().Kubeconfig(pki.NameAdmin)
	return path, t.Readable(path)
}

// kubectlCommand asks this kthwd, in whichever directory it is typed.
func kubectlCommand(l *config.Loader) string {
	switch {
	case l.Origin("data-dir") == config.OriginFlag:
		return "kthwd kubectl --data-dir=" + text.ShellWord(cli.Absolute(l.Config.Controller.DataDir)) + " get nodes"
	case l.File() != "" && l.File() != config.DefaultFile:
		return "kthwd kubectl --config=" + text.ShellWord(cli.Absolute(l.File())) + " get nodes"
	}
	return "kthwd kubectl get nodes"
}
