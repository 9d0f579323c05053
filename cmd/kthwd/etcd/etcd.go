package etcd

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/recovery"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) etcdVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("etcd", "Look at etcd, make room in it, or recover it")
	cmd.AddCommand(a.etcdStatusVerb(l), a.etcdSpaceVerb(l), a.etcdSnapshotVerb(l), a.etcdMoveLeaderVerb(l), a.etcdRecoverVerb(l))
	return cmd
}

func (a *app) etcdRecoverVerb(l *config.Loader) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "recover [flags]",
		Short: "Make this member a one-member cluster when the rest is lost",
		Long: "Make the etcd member of this data directory a one-member cluster with all its data, when\n" +
			"so many other members are lost for good that there will never be a quorum again. kthwd\n" +
			"must be stopped. Data that only the lost members had is lost. On a terminal, the command\n" +
			"asks for confirmation first.\n\n" +
			"It works on a copy beside the data and swaps the two at the end. Stopped at any moment, it\n" +
			"leaves either the old or the new data in place. The old data is kept.",
		Example: "  kthwd etcd recover --config=/etc/kthwd/kthwd.yaml",
		Args:    cli.NoVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.etcdRecover(cmd.Context(), l, yes) },
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "Do not ask for confirmation. Required if standard input is not a terminal.")
	l.AddFlags(cmd.Flags(), "config", "data-dir", "etcd-data-dir")
	return cmd
}

func (a *app) etcdRecover(ctx context.Context, l *config.Loader, yes bool) error {
	if err := l.Load(); err != nil {
		return err
	}
	logs, err := a.NewLogs(l.Config.LogFormat, l.Config.LogLevel)
	if err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	r, err := recovery.Begin(ctx, l.Config.Controller, cli.Version, logs.Logger("etcd"))
	if err != nil {
		return err
	}
	defer r.Close()
	a.describe(r)
	if !yes {
		if err := a.Confirm(ctx, "Give the others up?"); err != nil {
			return err
		}
	}
	revision, err := r.Run(ctx)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted: nothing has changed")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "\n%s is a cluster of its own, at revision %d; the data as they were are in %s\n"+
		"Start kthwd here; then, for each other controller, kthwd member add here and kthwd join --replace-data there.\n", r.Name, revision, r.Backup)
	a.DescribeWayBack(r.WayBack())
	return nil
}

// describe prints what r.Run would do.
func (a *app) describe(r *recovery.Recovery) {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "cluster\t%s\n", text.Line(r.Cluster))
	fmt.Fprintf(w, "stays\t%s, member %s\n", text.Line(r.Name), r.Member)
	for i, lost := range r.Lost {
		what := "given up"
		if i > 0 {
			what = ""
		}
		name := lost.Name
		if name == "" {
			name = "a member that never started"
		}
		fmt.Fprintf(w, "%s\t%s, %s\n", what, text.Line(name), text.Line(strings.Join(lost.Peers, " ")))
	}
	fmt.Fprintf(w, "revision\t%d; what only the others have is lost\n", r.Rev)
	fmt.Fprintf(w, "data\t%s, %d MB\n", r.Data, r.Size>>20)
	fmt.Fprintf(w, "kept in\t%s\n", r.Backup)
	for _, dir := range r.Cleared {
		fmt.Fprintf(w, "removed\t%s, left by an unfinished recovery\n", dir)
	}
	w.Flush()
}
