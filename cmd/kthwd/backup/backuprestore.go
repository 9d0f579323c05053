package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"kthwd/appliance/archive"
	"kthwd/appliance/backup"
	"kthwd/appliance/config"
	"kthwd/appliance/text"
	linked "kthwd/appliance/version"
	"kthwd/cmd/kthwd/cli"
)

// restoreFlags are the flags of kthwd backup restore that are not settings.
type restoreFlags struct {
	identities         []string
	plan, yes, replace bool
}

func (a *app) backupRestoreVerb(l *config.Loader) *cobra.Command {
	const usage = "FILE"
	f := &restoreFlags{}
	cmd := &cobra.Command{
		Use:   "restore " + usage + " [flags]",
		Short: "Make this machine the cluster in an archive",
		Long: "Make this machine the only controller of the cluster in an archive; the others join it with\n" +
			"kthwd member add and kthwd join --replace-data. kthwd must be stopped. The machine may be\n" +
			"blank, and have another name and address: certificates that do not fit it are made anew,\n" +
			"with the names of the old ones. Everything that was written since the archive is lost.\n\n" +
			"Without a configuration file the settings come from the archive, and kthwd.yaml is written\n" +
			"into the data directory. Stopped at any moment, the command leaves nothing changed, or a\n" +
			"restore that the next start finishes. Nothing is deleted.",
		Example: "  kthwd backup restore c0-20261128T014000Z-r48213.kthwd --plan\n  kthwd backup restore c0-20261128T014000Z-r48213.kthwd --identity=key.txt --name=new --advertise-address=10.0.9.7",
		Args:    cli.WantArgs(1, 1, usage),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.backupRestore(cmd, l, args[0], f) },
	}
	identityFlag(cmd, &f.identities)
	cmd.Flags().BoolVar(&f.plan, "plan", false, "Print what would be done, and change nothing.")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "Do not ask for confirmation. Required if standard input is not a terminal.")
	cmd.Flags().BoolVar(&f.replace, "replace-data", false, "Move existing etcd data and files aside; nothing is deleted.")
	l.AddFlags(cmd.Flags(), "config", "data-dir", "etcd-data-dir", "name", "advertise-address", "bind-address", "subject-alt-name", "secure-port",
		"etcd-client-port", "etcd-peer-port", "controller-manager-port", "scheduler-port", "join-port", "health-address", "health-server-name",
		"metrics-address", "metrics-web-config", "metrics-insecure", "metrics-pprof", "log-format", "log-level",
		"etcd-arg", "kube-apiserver-arg", "kube-controller-manager-arg", "kube-scheduler-arg", "profile")
	return cmd
}

func (a *app) backupRestore(cmd *cobra.Command, l *config.Loader, file string, f *restoreFlags) error {
	identities, err := archive.ReadIdentities(f.identities)
	if err != nil {
		return err
	}
	o, err := a.restoreOptions(cmd, l, cli.Absolute(file), identities)
	if err != nil {
		return err
	}
	o.Replace = f.replace
	r, err := backup.BeginRestore(o)
	if err != nil {
		return err
	}
	defer r.Close()
	a.describeRestore(r, o, l.File())
	if f.plan {
		return nil
	}
	ctx, release := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer release()
	if !f.yes {
		if err := a.Confirm(ctx, "Restore it here?"); err != nil {
			return err
		}
	}
	return a.runRestore(ctx, r, o, l)
}

func (a *app) runRestore(ctx context.Context, r *backup.Restore, o backup.RestoreOptions, l *config.Loader) error {
	err := r.Run(ctx)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted: nothing has changed")
	}
	if err != nil {
		return err
	}
	start := "kthwd --role=controller --config=" + text.ShellWord(cli.Absolute(l.File()))
	if o.Settings != nil {
		start = "kthwd --config=" + text.ShellWord(filepath.Join(o.Config.DataDir, archive.ConfigFile))
	}
	fmt.Fprintf(a.Out, "\n%s is the cluster, at revision %d. Made anew: %s\nStart it:\n\n  %s\n\n"+
		"Then, for each further controller, kthwd member add here and kthwd join --replace-data there.\n",
		text.Line(o.Config.Name), r.Revision, orNothing(r.Made), start)
	if r.Old != "" {
		fmt.Fprintf(a.Out, "\nThe data that were here are in %s. They were not verified: whether they are whole is not known.\n", text.Line(r.Aside))
	}
	a.DescribeWayBack(r.WayBack())
	return nil
}

func orNothing(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// restoreOptions decides the configuration of the restored controller: the file of this
// machine if there is one, otherwise the settings in the archive; flags override both.
func (a *app) restoreOptions(cmd *cobra.Command, l *config.Loader, file string, identities []age.Identity) (o backup.RestoreOptions, err error) {
	opened, err := archive.Open(file, identities...)
	if err != nil {
		return o, err
	}
	defer opened.Close()
	if err := l.Load(); err != nil {
		return o, err
	}
	own := l.File() != ""
	archived := archivedSettings(opened.Files[archive.ConfigFile])
	if !own {
		settings := pflag.NewFlagSet("", pflag.ContinueOnError) // all of them: those that are no flags here are the cluster's
		l.AddFlags(settings)
		if err := adoptSettings(settings, archived); err != nil {
			return o, fmt.Errorf("%s: %s in it: %w", file, archive.ConfigFile, err)
		}
		l.Config.Role = []string{config.RoleController}
	}
	c := &l.Config.Controller
	c.InitialCluster, c.InitialClusterState = nil, config.StateNew
	if err := l.ResolveController(); err != nil {
		return o, err
	}
	if err := l.ValidateController(); err != nil {
		return o, err
	}
	logs, err := a.NewLogs(l.Config.LogFormat, []string{"warn"})
	if err != nil {
		return o, err
	}
	o = backup.RestoreOptions{File: file, Identities: identities, Config: *c, Kthwd: cli.Version, Log: logs.Logger("etcd"), Report: a.newProgress(false).report}
	if !own {
		o.Settings = config.RestoredFile(l.Config)
	} else {
		a.warnOfOthers(archived, c)
	}
	return o, nil
}

// archivedSettings reads the settings in an archive.
func archivedSettings(data []byte) map[string]yaml.Node {
	all := map[string]yaml.Node{}
	if yaml.Unmarshal(data, &all) != nil {
		return nil
	}
	return all
}

// ownSettings are those that the archived controller had for itself.
var ownSettings = []string{"config", "role", "initial-cluster", "initial-cluster-state", "files"}

// adoptSettings gives each setting that no flag sets its value in the archive.
func adoptSettings(flags *pflag.FlagSet, archived map[string]yaml.Node) error {
	moved, data := flags.Changed("advertise-address") && !flags.Changed("bind-address"), archived["data-dir"]
	for key, node := range archived {
		f := flags.Lookup(key)
		if f == nil || f.Changed || slices.Contains(ownSettings, key) {
			continue
		}
		if key == "etcd-data-dir" && node.Value == filepath.Join(data.Value, "etcd") {
			continue // the default, below whichever data directory
		}
		if key == "bind-address" && moved {
			address := flags.Lookup("advertise-address").Value.String()
			if was := archived["advertise-address"]; node.Value == was.Value {
				if err := f.Value.Set(address); err != nil {
					return err
				}
				continue
			}
		}
		if err := setFlag(f, node); err != nil {
			return err
		}
	}
	return nil
}

func setFlag(f *pflag.Flag, node yaml.Node) error {
	if node.Kind != yaml.SequenceNode {
		return f.Value.Set(node.Value)
	}
	var values []string
	if err := node.Decode(&values); err != nil {
		return err
	}
	list, ok := f.Value.(pflag.SliceValue)
	if !ok {
		return fmt.Errorf("%s is a list", f.Name)
	}
	return list.Replace(values)
}

// warnOfOthers warns of settings of the cluster that this machine's file has otherwise.
func (a *app) warnOfOthers(archived map[string]yaml.Node, c *config.Controller) {
	for _, v := range []struct{ key, is string }{{"service-cluster-ip-range", c.ServiceClusterIPRange}, {"cluster-cidr", c.ClusterCIDR}} {
		if was := archived[v.key].Value; was != "" && was != v.is {
			a.Warn(fmt.Sprintf("--%s is %s here, and was %s in the archive: the cluster was made with the second", v.key, v.is, was))
		}
	}
}

// describeRestore prints what r.Run would do.
func (a *app) describeRestore(r *backup.Restore, o backup.RestoreOptions, file string) {
	m, v := r.Manifest, linked.Linked()
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", what, text.Line(fmt.Sprintf(format, args...)))
	}
	line("archive", "of %s, cluster %s, revision %d, %d keys, %s, verified then", m.Name, m.Cluster, m.Revision, m.Keys, m.Created.Format("2006-01-02 15:04 UTC"))
	line("versions", "Kubernetes %s, etcd %s; here %s and %s", m.Kubernetes, m.Etcd, v.Kubernetes, v.Etcd)
	line("lost", "everything written since; pods that were made since are deleted by their nodes")
	if len(m.Members) > 1 {
		line("members", "%d become 1: %s", len(m.Members), strings.Join(m.Members, " "))
	}
	line("new", "%s at %s, a cluster of its own, at revision %d or more, so that every watcher begins anew", o.Config.Name, o.Config.AdvertiseAddress, m.Revision+1_000_000_000)
	line("data", "%s; etcd in %s", o.Config.DataDir, o.Config.Layout().Etcd())
	switch {
	case o.Settings != nil:
		line("settings", "of the archive, with the flags given here; written to %s", filepath.Join(o.Config.DataDir, archive.ConfigFile))
	default:
		line("settings", "of %s", file)
	}
	if len(r.Given) > 0 {
		line("given", "%s: not in the archive, so those in the data directory are used", strings.Join(r.Given, ", "))
	}
	for _, path := range m.Outside {
		if _, err := os.Stat(path); err != nil {
			line("needed", "%s: it was used, and is neither in the archive nor here", path)
		}
	}
	for _, name := range m.KMS {
		line("needed", "the key management service %s", name)
	}
	if r.Old != "" {
		line("aside", "%s goes to %s, as it is: it is not verified", r.Old, r.Aside)
	}
	line("nodes", "their leases are of back then: NotReady until each has written again")
	w.Flush()
}
