package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

const (
	moveLeaderTimeout = 30 * time.Second
	snapshotTimeout   = time.Hour // 8 GiB at the pace that a slow disk bears
)

// withEtcd calls use with the cluster of the member that runs on this machine.
func (a *app) withEtcd(ctx context.Context, l *config.Loader, within time.Duration, use func(context.Context, *etcdspace.Cluster) error) error {
	t, err := a.Target(l)
	if err != nil {
		return err
	}
	if t.Dir == "" {
		return advice.With(errors.New("a load balancer has no etcd"), "run this on a controller, or name its directory with --data-dir")
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := etcdspace.Open(ctx, t.Layout())
	if err != nil {
		return err
	}
	defer c.Close()
	return use(ctx, c)
}

func (a *app) etcdStatusVerb(l *config.Loader) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show every etcd member: leader, term, index, size, alarms",
		Long: "Show every member of etcd's cluster as it answers itself, also one that does not answer,\n" +
			"as seen by the controller that runs on this data directory. The exit code is 0 if every\n" +
			"member is ok, 1 if one is not, and 2 if nothing can be written: no leader, or the alarm\n" +
			"NOSPACE.",
		Example: "  kthwd etcd status\n  kthwd etcd status -o json",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.withEtcd(cmd.Context(), l, spaceTimeout, func(ctx context.Context, c *etcdspace.Cluster) error { return a.etcdStatus(ctx, c, asJSON) })
		},
	}
	cli.OutputFlag(cmd, &output)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) etcdStatus(ctx context.Context, c *etcdspace.Cluster, asJSON bool) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		err = cli.WriteJSON(a.Out, s)
	} else {
		err = writeEtcdStatus(a.Out, s)
	}
	if err != nil {
		return err
	}
	return etcdHealth(s)
}

// etcdHealth is the exit code of a state.
func etcdHealth(s etcdspace.Status) error {
	if s.Leader == "" || s.Full() {
		return cli.ErrDown
	}
	for _, m := range s.Members {
		if m.State != etcdspace.StateOK || m.Corrupt() {
			return cli.ErrDegraded
		}
	}
	return nil
}

func writeEtcdStatus(out io.Writer, s etcdspace.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tID\tROLE\tSTATE\tTERM\tINDEX\tAPPLIED\tSIZE\tIN USE\tQUOTA\tVERSION\tALARMS")
	for _, m := range s.Members {
		line := []string{m.Name, m.ID, memberRole(m), m.State}
		if m.Error == "" {
			line = append(line, strconv.FormatUint(m.Term, 10), strconv.FormatUint(m.Index, 10), strconv.FormatUint(m.Applied, 10),
				text.Bytes(m.Size), text.Bytes(m.InUse), text.Bytes(m.Quota), m.Version, cmp.Or(strings.Join(m.Alarms, " "), "-"))
		} else {
			line = append(line, "-", "-", "-", "-", "-", "-", "-", "-")
		}
		for i := range line {
			line[i] = text.Line(line[i])
		}
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, m := range s.Members {
		if m.Error != "" {
			fmt.Fprintf(out, "%s does not answer: %s\n", text.Line(m.Name), text.Line(m.Error))
		}
	}
	return nil
}

func memberRole(m etcdspace.Member) string {
	switch {
	case m.Leader:
		return "leader"
	case m.Learner:
		return "learner"
	}
	return "voter"
}

func (a *app) etcdSnapshotVerb(l *config.Loader) *cobra.Command {
	const usage = "FILE"
	var output string
	cmd := &cobra.Command{
		Use:   "snapshot " + usage + " [flags]",
		Short: "Write etcd's database to a file, as etcdctl does",
		Long: "Write the database of the etcd member that runs on this data directory to a new file, in\n" +
			"the format of etcdctl snapshot save. The file is verified before it gets its name, and\n" +
			"only its owner can read it: it holds the cluster's secrets. For a backup that can be\n" +
			"restored on a blank machine, with keys and certificates, see kthwd backup.",
		Example: "  kthwd etcd snapshot /mnt/backup/etcd.db",
		Args:    cli.WantArgs(1, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.withEtcd(cmd.Context(), l, snapshotTimeout, func(ctx context.Context, c *etcdspace.Cluster) error {
				s, err := c.Snapshot(ctx, args[0])
				switch {
				case err != nil:
					return err
				case asJSON:
					return cli.WriteJSON(a.Out, s)
				}
				_, err = fmt.Fprintf(a.Out, "%s: revision %d, %d keys, %s, verified\n", text.Line(s.File), s.Revision, s.Keys, text.Bytes(s.Size))
				return err
			})
		},
	}
	cli.OutputFlag(cmd, &output)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) etcdMoveLeaderVerb(l *config.Loader) *cobra.Command {
	const usage = "[NAME]"
	cmd := &cobra.Command{
		Use:   "move-leader " + usage + " [flags]",
		Short: "Make another member etcd's leader",
		Long: "Make another member of etcd's cluster the leader: the one with the given name, or without\n" +
			"one the healthy voter that has applied most. All members hold their writes meanwhile, for\n" +
			"some tens of milliseconds, and none fails.",
		Example: "  kthwd etcd move-leader c2",
		Args:    cli.WantArgs(0, 1, usage),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return a.withEtcd(cmd.Context(), l, moveLeaderTimeout, func(ctx context.Context, c *etcdspace.Cluster) error {
				from, to, err := c.MoveLeader(ctx, name)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.Out, "leader  %s, before %s\n", text.Line(to), text.Line(from))
				return err
			})
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}
