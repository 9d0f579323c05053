package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

const (
	// spaceTimeout bounds a look at all keys; fixTimeout also databases of 8 GiB on slow disks.
	spaceTimeout = 30 * time.Minute
	fixTimeout   = 3 * time.Hour

	shownGroups = 10  // in the table
	nearlyFull  = 0.8 // share of the quota, as of the finding in status
	fullSoon    = 7 * 24 * time.Hour
)

// spaceFlags are the flags of kthwd etcd space.
type spaceFlags struct {
	output    string
	fix, plan bool
}

func (a *app) etcdSpaceVerb(l *config.Loader) *cobra.Command {
	f := &spaceFlags{}
	cmd := &cobra.Command{
		Use:   "space [flags]",
		Short: "Show the space in etcd's database and what fills it, and make room",
		Long: "Show the size of every member's database, how it grows, and the resources and namespaces\n" +
			"that fill it. Keys are read in small pages at a bounded rate; no other request waits. The\n" +
			"exit code is 0 if there is room, 1 if a database is at 80 % of its quota or will be full\n" +
			"within a week, and 2 with the alarm NOSPACE.\n\n" +
			"With --fix, drop old revisions of keys (compaction), rewrite the files without their gaps\n" +
			"(defragmentation), one member after the other and the leader last, and then turn the\n" +
			"alarm NOSPACE off. No key is deleted. Each controller sends its clients to the others and\n" +
			"gives up its leases before its member is defragmented; a cluster of one makes requests\n" +
			"wait meanwhile, some seconds for each GiB. It refuses without a quorum, or while a member\n" +
			"is unhealthy. A run that was interrupted is continued by the next one.",
		Example: "  kthwd etcd space\n  kthwd etcd space --fix --plan\n  kthwd etcd space --fix",
		Args:    cli.NoVerb,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.etcdSpace(cmd.Context(), l, f) },
	}
	cmd.Flags().BoolVar(&f.fix, "fix", false, "Make room.")
	cmd.Flags().BoolVar(&f.plan, "plan", false, "With --fix, print what would be done, and do nothing.")
	cli.OutputFlag(cmd, &f.output)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) etcdSpace(ctx context.Context, l *config.Loader, f *spaceFlags) error {
	asJSON, err := cli.CheckOutput(f.output)
	switch {
	case err != nil:
		return err
	case f.plan && !f.fix:
		return cli.Usagef("--plan is for --fix")
	case f.fix:
		return interrupted(a.withEtcd(ctx, l, fixTimeout, func(ctx context.Context, c *etcdspace.Cluster) error { return a.spaceFix(ctx, c, f.plan, asJSON) }))
	}
	return a.withEtcd(ctx, l, spaceTimeout, func(ctx context.Context, c *etcdspace.Cluster) error { return a.spaceShow(ctx, c, asJSON) })
}

// interrupted says what a signal has left.
func interrupted(err error) error {
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted: run kthwd etcd space --fix again; a member that defragments goes on by itself")
	}
	return err
}

// spaceReport is what kthwd etcd space shows.
type spaceReport struct {
	etcdspace.Status
	Growth *etcdspace.Trend `json:"growth,omitempty"` // nil until enough is known
	Usage  etcdspace.Usage  `json:"usage"`
}

func (a *app) spaceShow(ctx context.Context, c *etcdspace.Cluster, asJSON bool) (err error) {
	var r spaceReport
	if r.Status, err = c.Status(ctx); err != nil {
		return err
	}
	if r.Growth, err = c.Growth(ctx, r.Status); err != nil {
		return err
	}
	if r.Usage, err = c.Usage(ctx); err != nil {
		return err
	}
	if asJSON {
		err = cli.WriteJSON(a.Out, r)
	} else {
		err = r.write(a.Out)
	}
	return cmp.Or(err, r.health(time.Now()))
}

// health is the exit code of a report.
func (r spaceReport) health(now time.Time) error {
	if r.Full() {
		return cli.ErrDown
	}
	for _, m := range r.Members {
		if m.Quota > 0 && float64(m.Size) >= nearlyFull*float64(m.Quota) {
			return cli.ErrDegraded
		}
	}
	if r.Growth != nil && !r.Growth.Full.IsZero() && r.Growth.Full.Sub(now) < fullSoon {
		return cli.ErrDegraded
	}
	return nil
}

func (r spaceReport) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tSIZE\tIN USE\tFREE\tQUOTA\tFULL\tALARMS")
	for _, m := range r.Members {
		if m.Error != "" {
			fmt.Fprintf(w, "%s\tdoes not answer: %s\n", text.Line(m.Name), text.Line(m.Error))
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.0f %%\t%s\n", text.Line(m.Name), text.Bytes(m.Size), text.Bytes(m.InUse), text.Bytes(m.Free()),
			text.Bytes(m.Quota), 100*float64(m.Size)/float64(max(m.Quota, 1)), cmp.Or(text.Line(strings.Join(m.Alarms, " ")), "-"))
	}
	fmt.Fprintln(w)
	fmt.Fprintf(w, "growth\t%s\n", r.Growth.String())
	u := r.Usage
	fmt.Fprintf(w, "history\t%d revisions since the last compaction, at %d\n", u.History(), u.Compacted)
	fmt.Fprintf(w, "data\t%d keys, %s\n", u.Keys, text.Bytes(u.Bytes))
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return writeGroups(out, u)
}

// writeGroups shows what fills a database.
func writeGroups(out io.Writer, u etcdspace.Usage) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RESOURCE\tNAMESPACE\tCOUNT\tBYTES\tSHARE")
	for _, g := range u.Groups[:min(len(u.Groups), shownGroups)] {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%.0f %%\n", text.Line(g.Resource), cmp.Or(text.Line(g.Namespace), "-"), g.Count, text.Bytes(g.Bytes), 100*float64(g.Bytes)/float64(max(u.Bytes, 1)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more := len(u.Groups) - shownGroups; more > 0 {
		fmt.Fprintf(out, "%d more with -o json\n", more)
	}
	return nil
}

func (a *app) spaceFix(ctx context.Context, c *etcdspace.Cluster, planOnly, asJSON bool) error {
	p, err := c.Plan(ctx)
	switch {
	case err != nil:
		return err
	case planOnly && asJSON:
		return cli.WriteJSON(a.Out, p)
	case planOnly:
		for _, line := range p.Lines() {
			fmt.Fprintln(a.Out, text.Line(line))
		}
		return nil
	}
	if p.Status.Full() {
		a.sayWhatFills(ctx, c)
	}
	fixed, err := c.Fix(ctx, p, func(step string) { fmt.Fprintf(a.Err, "%s\n", text.Line(step)) })
	switch {
	case err != nil:
		return err
	case asJSON:
		return cli.WriteJSON(a.Out, fixed)
	}
	return writeFixed(a.Out, fixed)
}

// sayWhatFills shows the cause of the alarm before the room is made: it will come back.
func (a *app) sayWhatFills(ctx context.Context, c *etcdspace.Cluster) {
	u, err := c.Usage(ctx)
	if err != nil {
		a.Warn("what fills the database is not known: " + err.Error())
		return
	}
	fmt.Fprintf(a.Err, "the database is full: %d keys with %s, and %d revisions of history\n", u.Keys, text.Bytes(u.Bytes), u.History())
	_ = writeGroups(a.Err, u)
}

func writeFixed(out io.Writer, f etcdspace.Fixed) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tBEFORE\tAFTER\tTOOK")
	for _, m := range f.Members {
		took := "left as it is"
		if m.Took > 0 {
			took = m.Took.Round(time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", text.Line(m.Name), text.Bytes(m.Before), text.Bytes(m.After), took)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(f.Disarmed) > 0 {
		fmt.Fprintf(out, "NOSPACE is off on %s\n", text.Line(strings.Join(f.Disarmed, ", ")))
	}
	return nil
}
