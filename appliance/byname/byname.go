// Package byname is upstream's own programs, whole: their flags, help, exit codes and versions
// are those of upstream's binaries.
//
// A program that Run has begun may end the process itself, as it does under its own name:
// main calls Run and then exits, and nothing of kthwd runs beside it. No other caller may
// use this package.
package byname

import (
	"os"
	"time"
	_ "time/tzdata" // for CronJobs, as upstream's programs have it

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/pkg/v3/cobrautl"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's ways to log in
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // metrics of the clients
	_ "k8s.io/component-base/metrics/prometheus/version"  // metric of the version
	"k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	"kthwd/appliance/early"
	"kthwd/appliance/names"
	"kthwd/appliance/program"
)

// Run runs the program and returns its exit code. args is its command line, the name first.
func Run(name string, args []string) int {
	os.Args = args // each of these programs reads it
	// etcdctl sets this for the whole process while it is initialised.
	cobra.EnablePrefixMatching = name == names.Etcdctl || name == names.Etcdutl
	switch name {
	case names.Kubectl:
		return kubectl()
	case names.Etcdctl:
		onlyOwnFlags()
		ctlv3.MustStart()
		return 0
	case names.Etcdutl:
		onlyOwnFlags()
		return utl()
	}
	early.Over() // the others stay
	switch name {
	case program.Etcd:
		onlyOwnFlags()
		etcdmain.Main(args)
		return 0
	case program.APIServer:
		return cli.Run(apiserver.NewAPIServerCommand())
	case program.ControllerManager:
		return cli.Run(controllermanager.NewControllerManagerCommand())
	case program.Scheduler:
		return cli.Run(scheduler.NewSchedulerCommand())
	}
	panic("no program " + name)
}

// onlyOwnFlags forgets the flags that packages of other programs register for the whole process;
// cobra would give them to each command.
func onlyOwnFlags() { pflag.CommandLine = pflag.NewFlagSet(os.Args[0], pflag.ExitOnError) }

// kubectl is kubectl's main. Its verbosity counts before its flags are parsed.
func kubectl() int {
	onlyOwnFlags()
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		cmdutil.CheckErr(err) // exits
	}
	return 0
}

// utl puts etcdutl together, whose own command is in its package main.
func utl() int {
	root := &cobra.Command{Use: "etcdutl", Short: "An administrative command line tool for etcd3.", SuggestFor: []string{"etcdutl"}}
	root.PersistentFlags().DurationVar(&etcdutl.FlockTimeout, "timeout", 10*time.Second, "time to wait to obtain a file lock on db file, 0 to block indefinitely")
	root.PersistentFlags().StringVarP(&etcdutl.OutputFormat, "write-out", "w", "simple", "set the output format (fields, json, protobuf, simple, table)")
	cobra.CheckErr(root.RegisterFlagCompletionFunc("write-out", cobra.FixedCompletions([]string{"fields", "json", "protobuf", "simple", "table"}, cobra.ShellCompDirectiveDefault)))
	root.AddCommand(
		etcdutl.NewDefragCommand(), etcdutl.NewSnapshotCommand(), etcdutl.NewHashKVCommand(),
		etcdutl.NewVersionCommand(), etcdutl.NewCompletionCommand(), etcdutl.NewMigrateCommand(),
	)
	root.SetHelpTemplate(`{{.UsageString}}`)
	if err := root.Execute(); err != nil {
		cobrautl.ExitWithError(cobrautl.ExitError, err)
	}
	return 0
}
