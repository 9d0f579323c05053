package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/text"
	"kthwd/appliance/tokenrotation"
)

// tokenRotationTimeout bounds one question: the controllers are asked twice at most.
const tokenRotationTimeout = time.Minute

func (a *app) pkiServiceAccountVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service-account VERB",
		Short: "Look at the key that signs service account tokens, or rotate it",
		Args:  noVerb,
		RunE:  noVerbGiven,
	}
	var force bool
	drop := a.tokenRotationGoOnVerb(l, tokenrotation.VerbDrop, "Forget the old key, which ends a rotation",
		"Let every controller forget the old key: its tokens are refused from then on. The verb itself is\n"+
			"refused until every controller has watched for a day and seen no token of the old key; pods get\n"+
			"new tokens within the hour, a Secret of the type service-account-token keeps its old one.", &force)
	drop.Flags().BoolVar(&force, "force", false, "Forget it although somebody may still come with a token of it.")
	cmd.AddCommand(a.tokenRotationStatusVerb(l), a.tokenRotationRotateVerb(l),
		a.tokenRotationGoOnVerb(l, tokenrotation.VerbResume, "Go on with a rotation that has stopped",
			"Go on with the stage at which a rotation of the service account key has stopped: because a\n"+
				"controller was away, or because the one that carried it on has died. Run it on any controller\n"+
				"that has the new key; the error names the one where to run it otherwise.", nil),
		drop,
		a.tokenRotationGoOnVerb(l, tokenrotation.VerbAbort, "Take a rotation back",
			"Take a rotation of the service account key back, until the new key signs: every controller\n"+
				"forgets it.", nil))
	return cmd
}

func (a *app) tokenRotationStatusVerb(l *config.Loader) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status [flags]",
		Short: "Show which keys are in use, and who still comes with the old one",
		Long: "Show a rotation that is under way, the keys with which every controller signs and whose tokens\n" +
			"it accepts, and during a rotation the accounts that still come with tokens of the old key. Keys\n" +
			"are named by the beginning of their ID, which the header of a token has as kid. The exit code\n" +
			"is 1 while a rotation has stopped.",
		Example: "  kthwd pki service-account status\n  kthwd pki service-account status -o json",
		Args:    noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := checkOutput(output)
			if err != nil {
				return err
			}
			return a.tokenRotationStatus(cmd.Context(), l, asJSON)
		},
	}
	outputFlag(cmd, &output)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) tokenRotationRotateVerb(l *config.Loader) *cobra.Command {
	in := tokenrotation.Request{Verb: tokenrotation.VerbRotate}
	cmd := &cobra.Command{
		Use:   "rotate [flags]",
		Short: "Let another key sign service account tokens, while the controllers serve",
		Long: "Make a new key pair for service account tokens, and let it replace the old one. First every\n" +
			"controller accepts tokens of the new key and publishes it, then, after --wait, every controller\n" +
			"signs with it. Tokens of the old key are accepted until kthwd pki service-account drop; kthwd\n" +
			"pki service-account status names who still comes with one. Nothing is restarted but the term of\n" +
			"kube-controller-manager.\n\n" +
			"All controllers must be up. A rotation that stops, at whichever moment, is continued by kthwd\n" +
			"pki service-account resume, or taken back by abort before the new key signs. The kthwd that\n" +
			"runs does the work: this command only watches, and may be interrupted.",
		Example: "  kthwd pki service-account rotate --plan\n  kthwd pki service-account rotate --wait=0s",
		Args:    noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withTokenRotation(cmd.Context(), l, func(ctx context.Context, t target) error {
				r, err := askTokenRotation(ctx, t, in)
				if err != nil {
					return err
				}
				if in.Plan {
					for _, step := range r.Steps {
						fmt.Fprintln(a.out, text.Line(step))
					}
					return nil
				}
				return a.tokenRotationWatch(ctx, t)
			})
		},
	}
	cmd.Flags().DurationVar(&in.Wait, "wait", tokenrotation.Cached, "`DURATION` How long the new key is published before it signs: those outside the cluster who verify tokens may keep the old list for an hour. 0s if there are none.")
	cmd.Flags().BoolVar(&in.Plan, "plan", false, "Ask every controller, say what would be done, and change nothing.")
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) tokenRotationGoOnVerb(l *config.Loader, verb, short, long string, force *bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:     verb + " [flags]",
		Short:   short,
		Long:    long,
		Example: "  kthwd pki service-account " + verb,
		Args:    noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withTokenRotation(cmd.Context(), l, func(ctx context.Context, t target) error {
				in := tokenrotation.Request{Verb: verb, Force: force != nil && *force}
				if _, err := askTokenRotation(ctx, t, in); err != nil {
					return err
				}
				return a.tokenRotationWatch(ctx, t)
			})
		},
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) withTokenRotation(ctx context.Context, l *config.Loader, do func(context.Context, target) error) error {
	t, err := a.target(l)
	if err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	return do(ctx, t)
}

func askTokenRotation(ctx context.Context, t target, in tokenrotation.Request) (out tokenrotation.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, tokenRotationTimeout)
	defer cancel()
	return out, t.explain(t.Do(ctx, http.MethodPost, tokenrotation.Path, in, &out))
}

func (a *app) tokenRotationStatus(ctx context.Context, l *config.Loader, asJSON bool) error {
	return a.withTokenRotation(ctx, l, func(ctx context.Context, t target) error {
		r, err := askTokenRotation(ctx, t, tokenrotation.Request{Verb: tokenrotation.VerbStatus})
		if err != nil {
			return err
		}
		if asJSON {
			err = writeJSON(a.out, r)
		} else {
			err = a.writeTokenRotation(r)
		}
		if err == nil && r.Halted() {
			err = errDegraded
		}
		return err
	})
}

// writeTokenRotation shows a report to people.
func (a *app) writeTokenRotation(r tokenrotation.Report) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	switch s := r.Rotation; {
	case r.Running:
		fmt.Fprintf(w, "rotation\tstage %d of %d, %s, since %s: %s\n", s.Stage.Number(), tokenrotation.Of, text.Line(string(s.Stage)), s.Since.UTC().Format(time.RFC3339), text.Line(s.String()))
		switch {
		case r.Holder != "":
			fmt.Fprintf(w, "\tcarried on by %s\n", text.Line(r.Holder))
		case r.Halted():
			fmt.Fprintln(w, "\thas stopped")
		}
		if s.Stage == tokenrotation.StagePublish {
			fmt.Fprintf(w, "\tthe new key signs at %s at the earliest\n", s.Signs.UTC().Format(time.RFC3339))
		}
	case s != nil:
		fmt.Fprintf(w, "rotation\tnone; the last one, %s, ended at %s\n", text.Line(s.String()), s.Since.UTC().Format(time.RFC3339))
	default:
		fmt.Fprintln(w, "rotation\tnone")
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
		if r.Stopped != "" {
			fmt.Fprintf(w, "why\t%s\n", text.Line(r.Stopped))
		}
		fmt.Fprintln(w, "next\tkthwd pki service-account resume")
	case r.Waits:
		fmt.Fprintln(w, "next\tkthwd pki service-account drop, once nobody comes with the old key")
	}
	return w.Flush()
}

// writeUses shows who comes with the old key.
func writeUses(w *tabwriter.Writer, r tokenrotation.Report) {
	for _, c := range r.Controllers {
		if c.Use == nil {
			continue
		}
		fmt.Fprintf(w, "old key\t%s accepted %d tokens of it since %s\n", text.Line(c.Name), c.Use.Count, c.Use.Since.UTC().Format(time.RFC3339))
		for _, client := range c.Use.Clients {
			fmt.Fprintf(w, "\t%s from %s at %s\n", text.Line(client.Account), text.Line(client.Address), client.Last.UTC().Format(time.RFC3339))
		}
	}
	if !r.Expired.IsZero() {
		fmt.Fprintf(w, "\tits tokens are valid until %s at the latest, those of Secrets for ever\n", r.Expired.UTC().Format(time.RFC3339))
	}
}

// tokenRotationWatch shows the stages of a rotation until it ends, or waits for a person.
func (a *app) tokenRotationWatch(ctx context.Context, t target) error {
	var said string
	for {
		r, err := askTokenRotation(ctx, t, tokenrotation.Request{Verb: tokenrotation.VerbStatus, Brief: true})
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted: the running kthwd goes on; kthwd pki service-account status shows it")
		case err != nil:
			return err
		case r.Rotation == nil:
			return errors.New("the rotation has disappeared from etcd")
		}
		s := r.Rotation
		stage := fmt.Sprintf("stage %d of %d, %s: %s", s.Stage.Number(), tokenrotation.Of, s.Stage, s)
		if s.Stage == tokenrotation.StagePublish && time.Until(s.Signs) > time.Second {
			stage += "; the new key signs at " + s.Signs.UTC().Format(time.RFC3339)
		}
		if r.Running && stage != said {
			said = stage
			fmt.Fprintln(a.err, text.Line(stage))
		}
		switch {
		case r.Stopped != "":
			stopped := fmt.Errorf("stage %s has stopped: %s", s.Stage, text.Line(r.Stopped))
			hint := "kthwd pki service-account resume goes on"
			if r.Hint != "" {
				hint = r.Hint + "; then " + hint
			}
			return advice.With(stopped, hint)
		case !r.Running:
			fmt.Fprintf(a.out, "done  %s\n", text.Line(s.String()))
			return nil
		case r.Waits && r.Holder == "":
			fmt.Fprintf(a.out, "done  %s signs; tokens of %s are accepted until kthwd pki service-account drop\n", text.Line(tokenrotation.Short(s.New)), text.Line(tokenrotation.Short(s.Old)))
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(encryptionPoll):
		}
	}
}
