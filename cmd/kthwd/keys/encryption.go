package keys

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/encryption"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

const (
	encryptionCommand = "kthwd encryption"

	// encryptionTimeout bounds one question: a look at all of etcd, on slow disks.
	encryptionTimeout = 15 * time.Minute
)

func (a *app) encryptionVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("encryption", "Look at the key with which secrets are stored, or rotate it")
	goOn := func(verb, short, long string) *cobra.Command {
		return a.rotationGoOnVerb(l, encryptionCommand, verb, short, long, func(ctx context.Context, t cli.Target) error {
			if _, err := askEncryption(ctx, t, encryption.Request{Verb: verb}); err != nil {
				return err
			}
			return a.encryptionWatch(ctx, t)
		})
	}
	cmd.AddCommand(a.encryptionStatusVerb(l), a.encryptionRotateVerb(l),
		goOn(encryption.VerbResume, "Go on with a rotation that has stopped",
			"Go on with the stage at which a rotation of the encryption key has stopped: because a\n"+
				"controller was away, or because the one that carried it on has died. Run it on any controller\n"+
				"that has the new key; the error names the one where to run it otherwise."),
		goOn(encryption.VerbAbort, "Take a rotation back",
			"Take a rotation of the encryption key back, until its last stage has begun: what the new key\n"+
				"has written is written with the old one again, and every controller forgets the new key."))
	return cmd
}

func (a *app) encryptionStatusVerb(l *config.Loader) *cobra.Command {
	return a.rotationStatusVerb(l, encryptionCommand, "Show which keys are in use, and what is stored with which",
		"Show a rotation that is under way, the keys and the file that every controller uses, and how\n"+
			"many values in etcd are stored with which key. Every value is read. The exit code is 1 while\n"+
			"a rotation has stopped, or if a value cannot be read.", a.encryptionStatus)
}

func (a *app) encryptionRotateVerb(l *config.Loader) *cobra.Command {
	in := encryption.Request{Verb: encryption.VerbRotate}
	var without bool
	cmd := &cobra.Command{
		Use:   "rotate [flags]",
		Short: "Change the encryption key on all controllers, while they serve",
		Long: "Make a new encryption key, and let it replace the old one in four stages. First every\n" +
			"controller can read what the new key writes, then every controller writes with it, then what\n" +
			"is stored is written anew, and when two looks at etcd have found nothing of the old key, every\n" +
			"controller forgets it. Nothing is restarted, and no secret is unreadable at any moment.\n\n" +
			"All controllers must be up. A rotation that stops, at whichever moment, is continued by\n" +
			"kthwd encryption resume or taken back by kthwd encryption abort. A verified backup is made\n" +
			"first. The kthwd that runs does the work: this command only watches, and may be interrupted.",
		Example: "  kthwd encryption rotate --plan\n  kthwd encryption rotate --provider=secretbox\n" +
			"  kthwd encryption rotate --provider=kms --kms-name=vault --kms-endpoint=unix:///run/kms.sock",
		Args: cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.encryptionRotate(cmd.Context(), l, in, without) },
	}
	cmd.Flags().StringVar(&in.Provider, "provider", "", "`KIND` Provider of the new key: "+strings.Join(keyfile.Kinds, ", ")+", "+keyfile.KindKMS+"; without this flag that of the old one.")
	cmd.Flags().StringVar(&in.Name, "kms-name", "", "`NAME` Name of the key server (KMS v2) for --provider=kms, one that was not used before.")
	cmd.Flags().StringVar(&in.Endpoint, "kms-endpoint", "", "`URL` Socket of the key server's plugin, the same on each controller: unix:///run/kms.sock.")
	cmd.Flags().BoolVar(&in.Plan, "plan", false, "Check everything, say what would be done, and change nothing.")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("provider", cobra.FixedCompletions(append(slices.Clone(keyfile.Kinds), keyfile.KindKMS), cobra.ShellCompDirectiveNoFileComp)))
	cli.WithoutBackupFlag(cmd, &without)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func askEncryption(ctx context.Context, t cli.Target, in encryption.Request) (encryption.Report, error) {
	return askTarget[encryption.Report](ctx, t, encryption.Path, in, encryptionTimeout)
}

func (a *app) encryptionStatus(ctx context.Context, t cli.Target, asJSON bool) error {
	r, err := askEncryption(ctx, t, encryption.Request{Verb: encryption.VerbStatus})
	if err != nil {
		return err
	}
	return a.showRotation(r, asJSON, func() error { return a.writeEncryption(r) }, r.Running && r.Holder == "")
}

// writeEncryption shows a report to people.
func (a *app) writeEncryption(r encryption.Report) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	head := rotationHead{running: r.Running, of: encryption.Of, holder: r.Holder, halted: r.Running && r.Holder == ""}
	if s := r.Rotation; s != nil {
		head.known, head.number, head.stage, head.what, head.since = true, s.Stage.Number(), string(s.Stage), s.String(), s.Since
	}
	writeHead(w, head)
	fmt.Fprintf(w, "file\t%s\n", text.Line(r.File))
	for _, c := range r.Controllers {
		said := "uses " + text.Line(strings.Join(c.Keys, ", "))
		switch {
		case c.Error != "":
			said = text.Line(c.Error)
		case c.File != c.InUse:
			said = "has another file than its API server uses"
		}
		fmt.Fprintf(w, "%s\t%s  %s\n", text.Line(c.Name), said, text.Line(short(c.InUse)))
	}
	if r.Stored != nil {
		fmt.Fprintf(w, "in etcd\t%s\n", text.Line(r.Stored.String()))
	}
	if r.Running && r.Holder == "" {
		writeHalt(w, r.Stopped, encryptionCommand+" resume")
	}
	return w.Flush()
}

func (a *app) encryptionRotate(ctx context.Context, l *config.Loader, in encryption.Request, without bool) error {
	return a.withTarget(ctx, l, func(ctx context.Context, t cli.Target) error {
		begun, err := a.rotate(ctx, t, beginning{change: "encryption-rotate", onlyPlan: in.Plan, withoutBackup: without, ask: func(plan bool) ([]string, error) {
			in.Plan = plan
			r, err := askEncryption(ctx, t, in)
			if err != nil || !plan {
				return nil, err
			}
			return append([]string{"in etcd  " + r.Stored.String()}, r.Steps...), nil
		}})
		if err != nil || !begun {
			return err
		}
		return a.encryptionWatch(ctx, t)
	})
}

// encryptionWatch shows the stages of a rotation until it ends.
func (a *app) encryptionWatch(ctx context.Context, t cli.Target) error {
	goOn := "kthwd encryption resume goes on; kthwd encryption abort takes the rotation back"
	return a.watchRotation(ctx, encryptionCommand+" status", goOn, func(ctx context.Context) (*rotationLook, error) {
		r, err := askEncryption(ctx, t, encryption.Request{Verb: encryption.VerbStatus, Brief: true})
		if err != nil || r.Rotation == nil {
			return nil, err
		}
		s := r.Rotation
		look := &rotationLook{stage: string(s.Stage), stopped: r.Stopped, hint: r.Hint}
		if r.Running {
			look.line = stageLine(s.Stage.Number(), encryption.Of, look.stage, s.String())
		} else {
			look.done = fmt.Sprintf("%s; %d values written anew", s, r.Progress.Rewritten)
		}
		return look, nil
	})
}
