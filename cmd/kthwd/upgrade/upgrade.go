package upgrade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"kthwd/appliance/advice"
	"kthwd/appliance/backup/keep"
	"kthwd/appliance/cmdline"
	"kthwd/appliance/config"
	"kthwd/appliance/etcdspace"
	"kthwd/appliance/pki"
	"kthwd/appliance/text"
	"kthwd/appliance/upgrade"
	"kthwd/cmd/kthwd/cli"
)

const (
	upgradeStatusTimeout = 30 * time.Second
	upgradeFinishTimeout = 2 * time.Minute
	upgradeBackTimeout   = 5 * time.Minute // the members look every few seconds; a large log is read once
)

func (a *app) upgradeVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("upgrade", "Check an upgrade of the cluster, finish it, or take it back")
	cmd.AddCommand(a.upgradeCheckVerb(l), a.upgradeStatusVerb(l), a.upgradeFinishVerb(l), a.upgradeBackVerb(l), a.upgradeFactsVerb())
	return cmd
}

func (a *app) upgradeStatusVerb(l *config.Loader) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show the versions of every controller, and the next step of an upgrade",
		Long: "Show which versions every controller runs, the minor of Kubernetes that it emulates, the\n" +
			"version in which its etcd stores, and what to do next.\n\n" +
			"The exit code is 0 if no upgrade is under way, 1 while one is not finished or a way back is\n" +
			"under way, and also if that cannot be found out.",
		Example: "  kthwd upgrade status\n  kthwd upgrade status -o json",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.withUpgrade(cmd.Context(), l, upgradeStatusTimeout, func(ctx context.Context, t upgradeTarget) error {
				return a.upgradeStatus(ctx, t, asJSON)
			})
		},
	}
	cli.OutputFlag(cmd, &output)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) upgradeFinishVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "finish [flags]",
		Short: "End an upgrade: the older minor is no longer emulated, and there is no way back",
		Long: "End the upgrade of the cluster. From its next restart on, each controller serves what the new\n" +
			"minor of Kubernetes brings, and the old kthwd is refused; the restarts to make are printed. It\n" +
			"is refused as long as a controller is old, away, not ready or of another version.\n\n" +
			"The exit code is 0 if the upgrade is finished, and 1 if it is not.",
		Example: "  kthwd upgrade finish",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withUpgrade(cmd.Context(), l, upgradeFinishTimeout, a.upgradeFinish)
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) upgradeBackVerb(l *config.Loader) *cobra.Command {
	var cancel bool
	cmd := &cobra.Command{
		Use:   "back [flags]",
		Short: "Make room for the old kthwd again, before an upgrade is finished",
		Long: "Let the old kthwd run again on data that a newer one has used. Where all controllers are new,\n" +
			"etcd's own downgrade is enabled first. Then each controller notes that the old kthwd may run,\n" +
			"and what to install in which order is printed. Nothing that was written meanwhile is lost.\n" +
			"It can be repeated after an interruption.\n\n" +
			"The exit code is 0 if the old kthwd may run on every controller, and 1 if not.",
		Example: "  kthwd upgrade back\n  kthwd upgrade back --cancel",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withUpgrade(cmd.Context(), l, upgradeBackTimeout, func(ctx context.Context, t upgradeTarget) error {
				return a.upgradeBack(ctx, t, cancel)
			})
		},
	}
	cmd.Flags().BoolVar(&cancel, "cancel", false, "Go on with the upgrade instead: disable etcd's downgrade.")
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

// upgradeTarget is the controller that a verb asks, and its etcd.
type upgradeTarget struct {
	cli.Target
	etcd *etcdspace.Cluster
}

func (t upgradeTarget) look(ctx context.Context) (upgrade.View, error) {
	all, err := t.Cluster(ctx)
	if err != nil {
		return upgrade.View{}, t.Explain(err)
	}
	return upgrade.Look(ctx, t.etcd, all)
}

func (a *app) withUpgrade(ctx context.Context, l *config.Loader, within time.Duration, do func(context.Context, upgradeTarget) error) error {
	t, err := a.Target(l)
	if err != nil {
		return err
	}
	if t.Dir == "" {
		return advice.With(cli.Usagef("a load balancer is in no upgrade of a cluster"), "run this on a controller")
	}
	klog.SetLogger(cmdline.DiscardLogger) // kube-apiserver's code lets gRPC report there each connection that fails (storage/etcd3/logger.go)
	t.Anywhere, t.Addr = false, ""        // no other kthwd than the one with these data
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if _, err := t.Status(ctx); err != nil {
		return t.Explain(err)
	}
	etcd, err := etcdspace.Open(ctx, t.Layout())
	if err != nil {
		return err
	}
	defer etcd.Close()
	return do(ctx, upgradeTarget{t, etcd})
}

// upgradeView is the output as JSON.
type upgradeView struct {
	Stage upgrade.Stage `json:"stage"`
	upgrade.View
	Next []string `json:"next"`
}

func (a *app) upgradeStatus(ctx context.Context, t upgradeTarget, asJSON bool) error {
	v, err := t.look(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		err = cli.WriteJSON(a.Out, upgradeView{v.Judge(), v, append([]string{}, v.Next()...)})
	} else {
		err = a.writeUpgrade(v)
	}
	if err == nil && v.Judge() != upgrade.StageNone {
		err = cli.ErrDegraded
	}
	return err
}

// stageText says a stage to people.
var stageText = map[upgrade.Stage]string{
	upgrade.StageNone:      "none is under way",
	upgrade.StageRolling:   "not all controllers are new yet",
	upgrade.StageReached:   "all controllers are new, and it is not finished",
	upgrade.StageBack:      "on the way back, and all controllers are new",
	upgrade.StageReturning: "on the way back, and not all controllers are old again",
	upgrade.StageFinishing: "finished, but not on all controllers",
}

func (a *app) writeUpgrade(v upgrade.View) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CONTROLLER\tKTHWD\tKUBERNETES\tEMULATED\tETCD\tSTORAGE\tSTATE")
	for _, c := range v.Controllers {
		line := []string{c.Name, c.Kthwd, c.Kubernetes, c.Emulated, c.Etcd, c.Storage, upgradeWord(c)}
		for i := range line {
			line[i] = cmp.Or(text.Line(line[i]), "-")
		}
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	stage, what := v.Judge(), ""
	if v.State != nil && stage != upgrade.StageNone {
		what = " " + text.Line(v.State.String())
	}
	fmt.Fprintf(a.Out, "\nupgrade%s: %s\n", what, stageText[stage])
	for _, next := range v.Next() {
		fmt.Fprintf(a.Out, "  %s\n", a.AsTyped(text.Line(next)))
	}
	return nil
}

// upgradeWord is the state of a controller in few words.
func upgradeWord(c upgrade.Controller) string {
	switch {
	case c.Away != "":
		return "no answer: " + c.Away
	case c.Unwell != "":
		return "not ready: " + c.Unwell
	case c.Unwritten != "":
		return "cannot write member.json: " + c.Unwritten
	case c.Old:
		return "old"
	case c.Restart:
		return "to be restarted"
	case c.MayGoBack:
		return "the old kthwd may run again"
	}
	return "ready"
}

// say writes a step of a verb.
func (a *app) say(step, what string) {
	fmt.Fprintf(a.Out, "%-9s %s\n", step, a.AsTyped(text.Line(what)))
}

func (a *app) upgradeFinish(ctx context.Context, t upgradeTarget) error {
	v, err := t.look(ctx)
	if err != nil {
		return err
	}
	if err := v.Finish(ctx, t.etcd.Local(), hereIn(v)); err != nil {
		return err
	}
	a.say("finished", v.State.String())
	if v, err = upgrade.AwaitNoted(ctx, t.look); err != nil {
		return err
	}
	for _, next := range v.Next() {
		a.say("next", next)
	}
	return nil
}

// hereIn is the name of the controller that is asked.
func hereIn(v upgrade.View) string {
	for _, c := range v.Controllers {
		if c.Here {
			return c.Name
		}
	}
	return ""
}

func (a *app) upgradeBack(ctx context.Context, t upgradeTarget, cancel bool) error {
	r := upgrade.Returner{Client: t.etcd.Local(), Look: t.look, Say: a.say}
	if cancel {
		return r.Cancel(ctx)
	}
	err := r.Back(ctx)
	switch {
	case errors.Is(err, upgrade.ErrFinished):
		v, _ := t.look(ctx) // without an answer it is the advice without a copy
		return advice.With(err, wayBack(t.Layout(), v.State))
	case err != nil:
		return err
	}
	v, err := t.look(ctx)
	if err != nil {
		return err
	}
	for _, next := range v.Next() {
		a.say("next", next)
	}
	return nil
}

// wayBack names what leads back after an upgrade is finished: the copy of before, or an archive of
// before. The last archive is likely one of the newer minor, so it is not named.
func wayBack(l pki.Layout, s *upgrade.State) string {
	if s != nil {
		if dir := keep.Newest(l, s.Upgrade()); dir != "" {
			return fmt.Sprintf("what was written since the upgrade is lost on the way that remains: put back the copy of each controller from before it, here %s; README there says how", dir)
		}
	}
	return "restore an archive from before the upgrade with the kthwd that made it: kthwd backup restore"
}
