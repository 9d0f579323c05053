package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/carotation"
	"kthwd/appliance/config"
	"kthwd/appliance/text"
)

const (
	caRotationCommand = "kthwd pki ca"

	// caRotationTimeout bounds one question: the controllers are asked twice at most, and the kubelets once.
	caRotationTimeout = time.Minute
)

func (a *app) pkiCAVerb(l *config.Loader) *cobra.Command {
	cmd := group("ca", "Look at the cluster's CA, or replace it")
	goOn := func(verb, short, long, force string) *cobra.Command {
		var forced bool
		cmd := a.rotationGoOnVerb(l, caRotationCommand, verb, short, long, func(ctx context.Context, t target) error {
			if _, err := askCARotation(ctx, t, carotation.Request{Verb: verb, Force: forced}); err != nil {
				return err
			}
			return a.caRotationWatch(ctx, t)
		})
		if force != "" {
			cmd.Flags().BoolVar(&forced, "force", false, force)
		}
		return cmd
	}
	cmd.AddCommand(a.caRotationStatusVerb(l), a.caRotationRotateVerb(l),
		goOn(carotation.VerbSign, "Sign with the new CA, once everybody trusts it",
			"Let every controller sign with the new CA: its own certificates first, for the same keys and\n"+
				"names, and from then on those that nodes and users ask for. The verb itself is refused while a\n"+
				"kubelet does not accept a certificate of the new CA, and for six minutes after the controllers\n"+
				"trust it, for programs read a changed ca.pem that late.",
			"Sign, although a kubelet does not trust the new CA, or a program may not have read it."),
		goOn(carotation.VerbDrop, "Forget the old CA, which ends a rotation",
			"Let every controller forget the old CA: its certificates are refused from then on. The verb\n"+
				"itself is refused until every controller has watched for a day and seen no certificate of the\n"+
				"old CA; kthwd pki ca status names the users who come with one.",
			"Forget it, although somebody may still have a certificate of it."),
		goOn(carotation.VerbResume, "Go on with a rotation that has stopped",
			"Go on with the stage at which a rotation of the CA has stopped: because a controller was\n"+
				"away, or because the one that carried it on has died. Run it on any controller that has the\n"+
				"key of the new CA; the error names the one where to run it otherwise.", ""),
		goOn(carotation.VerbAbort, "Take a rotation back",
			"Take a rotation of the CA back, until the new CA signs: every controller forgets it.", ""))
	return cmd
}

func (a *app) caRotationStatusVerb(l *config.Loader) *cobra.Command {
	return a.rotationStatusVerb(l, caRotationCommand, "Show which CAs are in use, and who still needs the old one",
		"Show a rotation that is under way, the CA with which every controller signs and those that it\n"+
			"trusts; while ca.pem is distributed the kubelets that do not trust the new CA, and later the\n"+
			"users who come with a certificate of the old one. CAs are named by the beginning of the hash\n"+
			"of their key. The exit code is 1 while a rotation has stopped.", a.caRotationStatus)
}

func (a *app) caRotationRotateVerb(l *config.Loader) *cobra.Command {
	in := carotation.Request{Verb: carotation.VerbRotate}
	var without bool
	cmd := &cobra.Command{
		Use:   "rotate [flags]",
		Short: "Replace the cluster's CA, while the controllers serve",
		Long: "Make a new CA, and let it replace the cluster's. First every controller trusts both. Then you\n" +
			"copy ca.pem to workers, balancers and users, and kthwd pki ca sign lets the new CA sign.\n" +
			"Certificates of the old one are accepted until kthwd pki ca drop; kthwd pki ca status names\n" +
			"the users who come with one. Nothing is restarted but the terms of kube-controller-manager\n" +
			"and kube-scheduler.\n\n" +
			"All controllers must be up, and have a CA of etcd's own (kthwd pki split-etcd-ca). The key of\n" +
			"the new CA is in ca-key.pem of this controller afterwards, and of those that had one. A rotation that stops, at whichever moment, is continued by kthwd pki ca\n" +
			"resume, or taken back by abort before the new CA signs. A verified backup is made first. The\n" +
			"kthwd that runs does the work: this command only watches, and may be interrupted.",
		Example: "  kthwd pki ca rotate --plan\n  kthwd pki ca rotate",
		Args:    noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withTarget(cmd.Context(), l, func(ctx context.Context, t target) error {
				return a.caRotate(ctx, t, in, without)
			})
		},
	}
	cmd.Flags().BoolVar(&in.Plan, "plan", false, "Ask every controller, say what would be done, and change nothing.")
	withoutBackupFlag(cmd, &without)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) caRotate(ctx context.Context, t target, in carotation.Request, without bool) error {
	begun, err := a.rotate(ctx, t, beginning{change: "ca-rotate", onlyPlan: in.Plan, withoutBackup: without, ask: func(plan bool) ([]string, error) {
		in.Plan = plan
		r, err := askCARotation(ctx, t, in)
		return r.Steps, err
	}})
	if err != nil || !begun {
		return err
	}
	return a.caRotationWatch(ctx, t)
}

func askCARotation(ctx context.Context, t target, in carotation.Request) (carotation.Report, error) {
	return askTarget[carotation.Report](ctx, t, carotation.Path, in, caRotationTimeout)
}

func (a *app) caRotationStatus(ctx context.Context, t target, asJSON bool) error {
	r, err := askCARotation(ctx, t, carotation.Request{Verb: carotation.VerbStatus})
	if err != nil {
		return err
	}
	return a.showRotation(r, asJSON, func() error { return a.writeCARotation(r) }, r.Halted())
}

// writeCARotation shows a report to people.
func (a *app) writeCARotation(r carotation.Report) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	head := rotationHead{running: r.Running, of: carotation.Of, holder: r.Holder, halted: r.Halted()}
	if s := r.Rotation; s != nil {
		head.known, head.number, head.stage, head.what, head.since = true, s.Stage.Number(), string(s.Stage), s.String(), s.Since
	}
	writeHead(w, head)
	for _, c := range r.Controllers {
		said := text.Line(c.Error)
		if c.Error == "" {
			var trusts []string
			for _, id := range c.Trusts {
				trusts = append(trusts, carotation.Short(id))
			}
			said = fmt.Sprintf("signs with %s, trusts %s", text.Line(carotation.Short(c.Signs)), text.Line(strings.Join(trusts, ", ")))
		}
		fmt.Fprintf(w, "%s\t%s\n", text.Line(c.Name), said)
	}
	writeWorkers(w, r.Workers)
	writeCAUses(w, r)
	switch {
	case r.Halted():
		writeHalt(w, r.Stopped, caRotationCommand)
	case r.Waits && r.Rotation.Stage == carotation.StageDistribute:
		fmt.Fprintln(w, "next\tcopy ca.pem to every worker, balancer and user, then kthwd pki ca sign")
	case r.Waits:
		fmt.Fprintln(w, "next\tkthwd pki ca drop, once nobody comes with a certificate of the old CA")
	}
	return w.Flush()
}

// writeWorkers shows which kubelets trust the new CA.
func writeWorkers(w io.Writer, all []carotation.Worker) {
	trust := 0
	for _, one := range all {
		switch {
		case one.Error != "":
			fmt.Fprintf(w, "%s\tcannot be asked: %s\n", text.Line(one.Node), text.Line(one.Error))
		case one.Trusts:
			trust++
		default:
			fmt.Fprintf(w, "%s\tdoes not trust the new CA yet\n", text.Line(one.Node))
		}
	}
	if len(all) > 0 {
		fmt.Fprintf(w, "workers\t%d of %d trust the new CA\n", trust, len(all))
	}
}

// writeCAUses shows the users who come with a certificate of the old CA.
func writeCAUses(w io.Writer, r carotation.Report) {
	for _, c := range r.Controllers {
		if c.Use == nil {
			continue
		}
		fmt.Fprintf(w, "old CA\t%s has seen %d requests with a certificate of it since %s\n", text.Line(c.Name), c.Use.Count, c.Use.Since.UTC().Format(time.RFC3339))
		for _, client := range c.Use.Clients {
			fmt.Fprintf(w, "\t%s from %s at %s, until %s\n", text.Line(client.User), text.Line(client.Address), client.Last.UTC().Format(time.RFC3339), client.Expires.UTC().Format(time.DateOnly))
		}
	}
}

// caRotationWatch shows the stages of a rotation until it ends, or waits for a person.
func (a *app) caRotationWatch(ctx context.Context, t target) error {
	return a.watchRotation(ctx, caRotationCommand, "kthwd pki ca resume goes on", func(ctx context.Context) (*rotationLook, error) {
		r, err := askCARotation(ctx, t, carotation.Request{Verb: carotation.VerbStatus, Brief: true})
		if err != nil || r.Rotation == nil {
			return nil, err
		}
		s := r.Rotation
		look := &rotationLook{stage: string(s.Stage), stopped: r.Stopped, hint: r.Hint}
		if r.Running {
			look.line = stageLine(s.Stage.Number(), carotation.Of, look.stage, s.String())
		} else {
			look.done = s.String()
		}
		switch {
		case !r.Waits || r.Holder != "":
		case s.Stage == carotation.StageDistribute:
			look.done = "ca.pem has both CAs: copy it to every worker, balancer and user, then kthwd pki ca sign"
		default:
			look.done = fmt.Sprintf("%s signs; certificates of %s are accepted until kthwd pki ca drop", carotation.Short(s.New), carotation.Short(s.Old))
		}
		return look, nil
	})
}
