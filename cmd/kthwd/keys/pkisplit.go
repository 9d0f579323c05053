package keys

import (
	"context"
	"fmt"
	"net/http"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/etcdca"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

// splitTimeout exceeds the time that a running kthwd takes for all steps that it may take.
const splitTimeout = 2 * time.Minute

func (a *app) pkiSplitVerb(l *config.Loader) *cobra.Command {
	var in etcdca.Request
	var without bool
	cmd := &cobra.Command{
		Use:   "split-etcd-ca [flags]",
		Short: "Move a running cluster to a CA of etcd's own",
		Long: "Move the running controller to a CA of etcd's own, as far as the other controllers allow. With\n" +
			"one CA for everything, etcd's ports trust whatever that CA signs for a controller's name.\n\n" +
			"Run it on one controller after the other, first where ca-key.pem is, restart kthwd where it\n" +
			"says so, and repeat until nothing is left. Each run says what comes next; an interrupted one\n" +
			"is run again. etcd keeps its quorum, and a controller takes a step only after a look at what\n" +
			"all others trust and show. The first step on a controller makes a verified backup before it.",
		Example: "  kthwd pki split-etcd-ca --plan\n  kthwd pki split-etcd-ca",
		Args:    cli.NoVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.pkiSplit(cmd.Context(), l, in, without) },
	}
	cmd.Flags().BoolVar(&in.Plan, "plan", false, "Change nothing, and show where the controllers are and what the next step is.")
	cmd.Flags().BoolVar(&in.NewCA, "new-ca", false, "Make the CA on this controller although ca-key.pem is kept elsewhere; move etcd-ca-key.pem there afterwards.")
	cli.WithoutBackupFlag(cmd, &without)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) pkiSplit(ctx context.Context, l *config.Loader, in etcdca.Request, without bool) error {
	c, err := a.Target(l)
	if err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	if !in.Plan && !without {
		if err := a.backupBeforeSplit(ctx, c); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, splitTimeout)
	defer cancel()
	var moved etcdca.Moved
	if err := c.Explain(c.Do(ctx, http.MethodPost, etcdca.Path, in, &moved)); err != nil {
		return err
	}
	for _, file := range moved.Made {
		fmt.Fprintf(a.Out, "made  %s\n", text.Line(file))
	}
	t := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	restart := ""
	if moved.Restart() {
		restart = ", after a restart"
	}
	fmt.Fprintf(t, "%s\t%s%s\n", text.Line(moved.Name), moved.Stage, restart)
	for _, o := range moved.Others {
		state := o.Stage.String()
		if o.Error != "" {
			state = "unknown: " + text.Line(o.Error)
		}
		fmt.Fprintf(t, "%s\t%s\n", text.Line(o.Name), state)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "\nnext  %s\n", text.Line(moved.Next))
	return nil
}

// backupBeforeSplit makes a backup if the controller has not begun to move.
func (a *app) backupBeforeSplit(ctx context.Context, c cli.Target) error {
	asked, cancel := context.WithTimeout(ctx, splitTimeout)
	defer cancel()
	var is etcdca.Moved
	if err := c.Explain(c.Do(asked, http.MethodPost, etcdca.Path, etcdca.Request{Plan: true}, &is)); err != nil {
		return err
	}
	if is.Stage != pki.StageShared {
		return nil
	}
	return a.BackupBefore(ctx, c, "split-etcd-ca")
}
