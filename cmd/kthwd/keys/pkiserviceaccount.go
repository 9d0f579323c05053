package keys

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/text"
	"kthwd/appliance/tokenrotation"
	"kthwd/cmd/kthwd/cli"
)

const (
	tokenRotationCommand = "kthwd pki service-account"

	// tokenRotationTimeout bounds one question: the controllers are asked twice at most.
	tokenRotationTimeout = time.Minute
)

func (a *app) pkiServiceAccountVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("service-account", "Look at the key that signs service account tokens, or rotate it")
	var force bool
	var wait time.Duration
	goOn := func(verb, short, long string) *cobra.Command {
		return a.rotationGoOnVerb(l, tokenRotationCommand, verb, short, long, func(ctx context.Context, t cli.Target) error {
			in := tokenrotation.Request{Verb: verb, Force: force}
			err := a.patiently(ctx, wait, func() error { _, err := askTokenRotation(ctx, t, in); return err })
			if err != nil {
				return err
			}
			return a.tokenRotationWatch(ctx, t)
		})
	}
	drop := goOn(tokenrotation.VerbDrop, "Forget the old key, which ends a rotation",
		"Let every controller forget the old key: its tokens are refused from then on. The verb itself is\n"+
			"refused until every controller has watched for a day and seen no token of the old key; pods get\n"+
			"new tokens within the hour, a Secret of the type service-account-token keeps its old one.")
	waitFlag(drop, &wait)
	drop.Flags().BoolVar(&force, "force", false, "Forget it, although somebody may still use a token of it.")
	cmd.AddCommand(a.tokenRotationStatusVerb(l), a.tokenRotationRotateVerb(l),
		goOn(tokenrotation.VerbResume, "Go on with a rotation that has stopped",
			"Go on with the stage at which a rotation of the service account key has stopped: because a\n"+
				"controller was away, or because the one that carried it on has died. Run it on any controller\n"+
				"that has the new key; the error names the one where to run it otherwise."),
		drop,
		goOn(tokenrotation.VerbAbort, "Take a rotation back",
			"Take a rotation of the service account key back, until the new key signs: every controller\n"+
				"forgets it."))
	return cmd
}

func (a *app) tokenRotationStatusVerb(l *config.Loader) *cobra.Command {
	return a.rotationStatusVerb(l, tokenRotationCommand, "Show which keys are in use, and the accounts that still use the old one",
		"Show a rotation that is under way, the keys with which every controller signs and whose tokens\n"+
			"it accepts, and during a rotation the accounts that still use tokens of the old key. Keys are\n"+
			"named by the beginning of their ID, which the header of a token has as kid. The exit code is 1\n"+
			"while a rotation has stopped.", a.tokenRotationStatus)
}

func (a *app) tokenRotationRotateVerb(l *config.Loader) *cobra.Command {
	in := tokenrotation.Request{Verb: tokenrotation.VerbRotate}
	var without bool
	cmd := &cobra.Command{
		Use:   "rotate [flags]",
		Short: "Let another key sign service account tokens, while the controllers serve",
		Long: "Make a new key pair for service account tokens, and let it replace the old one. First every\n" +
			"controller accepts tokens of the new key and publishes it, then, after --wait, every controller\n" +
			"signs with it. Tokens of the old key are accepted until kthwd pki service-account drop; kthwd\n" +
			"pki service-account status names the accounts that use one. Nothing is restarted but the term of\n" +
			"kube-controller-manager.\n\n" +
			"All controllers must be up. A rotation that stops, at whichever moment, is continued by kthwd\n" +
			"pki service-account resume, or taken back by abort before the new key signs. A verified backup\n" +
			"is made first. The kthwd that runs does the work: this command only watches, and may be\n" +
			"interrupted.",
		Example: "  kthwd pki service-account rotate --plan\n  kthwd pki service-account rotate --wait=0s",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withTarget(cmd.Context(), l, func(ctx context.Context, t cli.Target) error {
				begun, err := a.rotate(ctx, t, beginning{change: "service-account-rotate", onlyPlan: in.Plan, withoutBackup: without, ask: func(plan bool) ([]string, error) {
					in.Plan = plan
					r, err := askTokenRotation(ctx, t, in)
					return r.Steps, err
				}})
				if err != nil || !begun {
					return err
				}
				return a.tokenRotationWatch(ctx, t)
			})
		},
	}
	cmd.Flags().DurationVar(&in.Wait, "wait", tokenrotation.Cached, "`DURATION` How long the new key is published before it signs: those outside the cluster who verify tokens may keep the old list for an hour. 0s if there are none.")
	cmd.Flags().BoolVar(&in.Plan, "plan", false, "Ask every controller, say what would be done, and change nothing.")
	cli.WithoutBackupFlag(cmd, &without)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func askTokenRotation(ctx context.Context, t cli.Target, in tokenrotation.Request) (tokenrotation.Report, error) {
	return askTarget[tokenrotation.Report](ctx, t, tokenrotation.Path, in, tokenRotationTimeout)
}

func (a *app) tokenRotationStatus(ctx context.Context, t cli.Target, asJSON bool) error {
	r, err := askTokenRotation(ctx, t, tokenrotation.Request{Verb: tokenrotation.VerbStatus})
	if err != nil {
		return err
	}
	return a.showRotation(r, asJSON, func() error { return a.writeTokenRotation(r) }, r.Halted())
}

// writeTokenRotation shows a report to people.
func (a *app) writeTokenRotation(r tokenrotation.Report) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	head := rotationHead{running: r.Running, of: tokenrotation.Of, holder: r.Holder, halted: r.Halted()}
	if s := r.Rotation; s != nil {
		head.known, head.number, head.stage, head.what, head.since = true, s.Stage.Number(), string(s.Stage), s.String(), s.Since
	}
	writeHead(w, head)
	if s := r.Rotation; r.Running && s.Stage == tokenrotation.StagePublish {
		fmt.Fprintf(w, "\tthe new key signs at %s at the earliest\n", s.Signs.UTC().Format(time.RFC3339))
	}
	for _, c := range r.Controllers {
		said := text.Line(c.Error)
		if c.Error == "" {
			var accepts []string
			for _, id := range c.Accepts {
				accepts = append(accepts, tokenrotation.Short(id))
			}
			said = fmt.Sprintf("signs with %s, accepts %s", text.Line(tokenrotation.Short(c.Signs)), text.Line(strings.Join(accepts, ", ")))
		}
		fmt.Fprintf(w, "%s\t%s\n", text.Line(c.Name), said)
	}
	writeUses(w, r)
	switch {
	case r.Halted():
		writeHalt(w, r.Stopped, tokenRotationCommand+" resume")
	case r.Waits:
		fmt.Fprintln(w, "next\tkthwd pki service-account drop, once nobody uses the old key")
	}
	return w.Flush()
}

// writeUses shows the accounts that still use the old key.
func writeUses(w *tabwriter.Writer, r tokenrotation.Report) {
	for _, c := range r.Controllers {
		if c.Use == nil {
			continue
		}
		from := c.Use.First
		if from.IsZero() { // of an older kthwd
			from = c.Use.Since
		}
		fmt.Fprintf(w, "old key\t%s accepted %d tokens of it since %s\n", text.Line(c.Name), c.Use.Count, from.UTC().Format(time.RFC3339))
		if c.Use.Since.After(from) {
			fmt.Fprintf(w, "\tit was restarted, and has watched without a break since %s\n", c.Use.Since.UTC().Format(time.RFC3339))
		}
		for _, client := range c.Use.Clients {
			fmt.Fprintf(w, "\t%s from %s at %s\n", text.Line(client.Account), text.Line(client.Address), client.Last.UTC().Format(time.RFC3339))
		}
	}
	if !r.Expired.IsZero() {
		fmt.Fprintf(w, "\tits tokens are valid until %s at the latest, those of Secrets for ever\n", r.Expired.UTC().Format(time.RFC3339))
	}
}

// tokenRotationWatch shows the stages of a rotation until it ends, or waits for a person.
func (a *app) tokenRotationWatch(ctx context.Context, t cli.Target) error {
	return a.watchRotation(ctx, tokenRotationCommand+" status", "kthwd pki service-account resume goes on", func(ctx context.Context) (*rotationLook, error) {
		r, err := askTokenRotation(ctx, t, tokenrotation.Request{Verb: tokenrotation.VerbStatus, Brief: true})
		if err != nil || r.Rotation == nil {
			return nil, err
		}
		s := r.Rotation
		look := &rotationLook{stage: string(s.Stage), stopped: r.Stopped, hint: r.Hint}
		if r.Running {
			look.line = stageLine(s.Stage.Number(), tokenrotation.Of, look.stage, s.String())
		} else {
			look.done = s.String()
		}
		if s.Stage == tokenrotation.StagePublish && time.Until(s.Signs) > time.Second {
			look.line += "; the new key signs at " + s.Signs.UTC().Format(time.RFC3339)
		}
		if r.Waits && r.Holder == "" {
			look.done = fmt.Sprintf("%s signs; tokens of %s are accepted until kthwd pki service-account drop", tokenrotation.Short(s.New), tokenrotation.Short(s.Old))
		}
		return look, nil
	})
}
