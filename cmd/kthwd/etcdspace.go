package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/etcdspace"
)

// spaceTimeout bounds kthwd etcd space: a database of 8 GiB on a slow disk takes minutes.
const spaceTimeout = 15 * time.Minute

func (a *app) etcdSpaceVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "space [flags]",
		Short: "Make room in the database of the running etcd member",
		Long: "Make room in the database of the etcd member that runs on this data directory: drop old\n" +
			"revisions of keys (compaction), rewrite the file without its gaps (defragmentation), and\n" +
			"turn this member's NOSPACE alarm off. No key is deleted. Requests to this member wait\n" +
			"meanwhile, some seconds for each GiB.\n\n" +
			"Each controller has its own database: run this on one after the other. If nothing can be\n" +
			"reclaimed, the command fails, and the alarm stays on.",
		Example: "  kthwd etcd space",
		Args:    noVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.etcdSpace(cmd.Context(), l) },
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) etcdSpace(ctx context.Context, l *config.Loader) error {
	if err := l.Load(); err != nil {
		return err
	}
	if l.Config.Controller.DataDir == "" {
		return usagef("--data-dir is empty")
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, spaceTimeout)
	defer cancel()
	r, err := etcdspace.Reclaim(ctx, l.Config.Controller.Layout().EtcdSocket())
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted: run kthwd etcd space again")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "before  %s\nafter   %s, %s in use, quota %s\n", megabytes(r.Before), megabytes(r.After), megabytes(r.InUse), megabytes(r.Quota))
	if r.Disarmed {
		fmt.Fprintln(a.out, "alarm   NOSPACE is off")
	}
	for _, member := range r.Others {
		a.warn(fmt.Sprintf("member %s still has the alarm NOSPACE, and nothing can be written before that is off: run kthwd etcd space on its controller", member))
	}
	return nil
}

// megabytes formats a size for people.
func megabytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
