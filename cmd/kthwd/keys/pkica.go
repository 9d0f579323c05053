package keys

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/carotation"
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/config"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

const (
	caRotationCommand = "kthwd pki ca"

	// caRotationTimeout bounds one question: the controllers are asked twice at most, and the kubelets once.
	caRotationTimeout = time.Minute
)

// caFlag selects one of the cluster's CAs.
type caFlag struct{ name string }

func (f *caFlag) add(cmd *cobra.Command) {
	names := carotation.CAs()
	var values []string
	for _, ca := range names {
		values = append(values, string(ca))
	}
	cmd.Flags().StringVar(&f.name, "ca", string(names[0]), "`NAME` Which CA: "+strings.Join(values[:len(values)-1], ", ")+" or "+values[len(values)-1]+".")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("ca", cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
}

func (f *caFlag) value() (carotation.CA, error) {
	for _, ca := range carotation.CAs() {
		if string(ca) == f.name {
			return ca, nil
		}
	}
	return "", cli.Usagef("--ca=%s: want cluster, front-proxy or etcd", f.name)
}

// caTarget is a CA of a running kthwd.
type caTarget struct {
	cli.Target
	ca carotation.CA
}

func (t caTarget) ask(ctx context.Context, in carotation.Request) (carotation.Report, error) {
	return askTarget[carotation.Report](ctx, t.Target, t.ca.Path(), in, caRotationTimeout)
}

// withCA gives a verb the flag, and calls do with the CA that it selects.
func withCA(f *caFlag, do func(context.Context, caTarget) error) func(context.Context, cli.Target) error {
	return func(ctx context.Context, t cli.Target) error {
		ca, err := f.value()
		if err != nil {
			return err
		}
		return do(ctx, caTarget{t, ca})
	}
}

func (a *app) pkiCAVerb(l *config.Loader) *cobra.Command {
	cmd := cli.Group("ca", "Look at the cluster's CAs, or replace one")
	goOn := func(verb, short, long, force string) *cobra.Command {
		var forced bool
		var wait time.Duration
		var which caFlag
		cmd := a.rotationGoOnVerb(l, caRotationCommand, verb, short, long, withCA(&which, func(ctx context.Context, t caTarget) error {
			err := a.patiently(ctx, wait, func() error { _, err := t.ask(ctx, carotation.Request{Verb: verb, Force: forced}); return err })
			if err != nil {
				return err
			}
			return a.caRotationWatch(ctx, t)
		}))
		which.add(cmd)
		if force != "" {
			waitFlag(cmd, &wait)
			cmd.Flags().BoolVar(&forced, "force", false, force)
		}
		return cmd
	}
	cmd.AddCommand(a.caRotationStatusVerb(l), a.caRotationRotateVerb(l),
		goOn(carotation.VerbSign, "Sign with the new CA, once everybody trusts it",
			"Let every controller sign with the new CA: its own certificates first, for the same keys and\n"+
				"names, and from then on those that nodes and users ask for. The verb itself is refused while a\n"+
				"kubelet does not accept a certificate of the new CA, and for six minutes after the controllers\n"+
				"trust it, for programs read a changed ca.pem that late. With --ca=front-proxy it is refused\n"+
				"while an extension API server does not accept one, and with --ca=etcd, also with --force,\n"+
				"while a member of etcd does not, which was not restarted yet.",
			"Sign, although somebody does not trust the new CA, or a program may not have read it."),
		goOn(carotation.VerbDrop, "Forget the old CA, which ends a rotation",
			"Let every controller forget the old CA: its certificates are refused from then on. The verb\n"+
				"itself is refused until every controller has watched for a day and seen no certificate of the\n"+
				"old CA; kthwd pki ca status names the users who come with one. etcd's old CA is forgotten with\n"+
				"the restart of each controller that follows, and kthwd pki ca resume --ca=etcd ends it.",
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
	var which caFlag
	cmd := a.rotationStatusVerb(l, caRotationCommand, "Show which CAs are in use, and who still needs the old one",
		"Show a rotation that is under way, the CA with which every controller signs and those that it\n"+
			"trusts; while the new CA is distributed the kubelets, or extension API servers, that do not trust\n"+
			"it, and later the users who come with a certificate of the old one. CAs are named by the beginning\n"+
			"of the hash of their key. The exit code is 1 while a rotation has stopped.", func(ctx context.Context, t cli.Target, asJSON bool) error {
			return withCA(&which, func(ctx context.Context, t caTarget) error { return a.caRotationStatus(ctx, t, asJSON) })(ctx, t)
		})
	which.add(cmd)
	return cmd
}

func (a *app) caRotationRotateVerb(l *config.Loader) *cobra.Command {
	in := carotation.Request{Verb: carotation.VerbRotate}
	var without bool
	var which caFlag
	cmd := &cobra.Command{
		Use:   "rotate [flags]",
		Short: "Replace one of the cluster's CAs, while the controllers serve",
		Long: "Make a new CA, and let it replace the cluster's. First every controller trusts both. Then you\n" +
			"copy ca.pem to workers, balancers and users, and kthwd pki ca sign lets the new CA sign.\n" +
			"Certificates of the old one are accepted until kthwd pki ca drop; kthwd pki ca status names\n" +
			"the users who come with one. Nothing is restarted but the terms of kube-controller-manager\n" +
			"and kube-scheduler. --ca=front-proxy does the same with the CA of the certificate with which API\n" +
			"servers speak to extension API servers; these read the new one by themselves. With --ca=etcd it is\n" +
			"that of etcd's members: you restart one controller after the other before sign, and after drop.\n\n" +
			"All controllers must be up, and have a CA of etcd's own (kthwd pki split-etcd-ca) if it is the\n" +
			"cluster's. The key of the new CA is beside its certificate on this controller afterwards, and on\n" +
			"those that had the old one. A rotation that stops, at whichever moment, is continued by kthwd pki\n" +
			"ca resume, or taken back by abort before the new CA signs. A verified backup is made first. The\n" +
			"kthwd that runs does the work: this command only watches, and may be interrupted.",
		Example: "  kthwd pki ca rotate --plan\n  kthwd pki ca rotate\n  kthwd pki ca rotate --ca=front-proxy\n  kthwd pki ca rotate --ca=etcd",
		Args:    cli.NoVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withTarget(cmd.Context(), l, withCA(&which, func(ctx context.Context, t caTarget) error {
				return a.caRotate(ctx, t, in, without)
			}))
		},
	}
	which.add(cmd)
	cmd.Flags().BoolVar(&in.Plan, "plan", false, "Ask every controller, say what would be done, and change nothing.")
	cli.WithoutBackupFlag(cmd, &without)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

// caRotate begins a rotation after a backup, or shows the plan.
func (a *app) caRotate(ctx context.Context, t caTarget, in carotation.Request, without bool) error {
	begun, err := a.rotate(ctx, t.Target, beginning{change: "ca-rotate", onlyPlan: in.Plan, withoutBackup: without, ask: func(plan bool) ([]string, error) {
		in.Plan = plan
		r, err := t.ask(ctx, in)
		return r.Steps, err
	}})
	if err != nil || !begun {
		return err
	}
	return a.caRotationWatch(ctx, t)
}

func (a *app) caRotationStatus(ctx context.Context, t caTarget, asJSON bool) error {
	r, err := t.ask(ctx, carotation.Request{Verb: carotation.VerbStatus})
	if err != nil {
		return err
	}
	return a.showRotation(r, asJSON, func() error { return a.writeCARotation(t.ca, r) }, r.Halted())
}

// writeCARotation shows a report to people.
func (a *app) writeCARotation(ca carotation.CA, r carotation.Report) error {
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	head := rotationHead{running: r.Running, of: ca.Stages(), holder: r.Holder, halted: r.Halted()}
	if s := r.Rotation; s != nil {
		head.known, head.number, head.stage, head.what, head.since = true, s.Stage.Number(), string(s.Stage), s.String(), s.Since
	}
	writeHead(w, head)
	for _, c := range r.Controllers {
		said := text.Line(c.Error)
		if c.Error == "" {
			var trusts []string
			for _, id := range c.Trusts {
				trusts = append(trusts, castate.Short(id))
			}
			said = fmt.Sprintf("signs with %s, trusts %s", text.Line(castate.Short(c.Signs)), text.Line(strings.Join(trusts, ", ")))
			if c.Restart {
				said += ", needs a restart"
			}
		}
		fmt.Fprintf(w, "%s\t%s\n", text.Line(c.Name), said)
	}
	writeWorkers(w, r.Workers)
	writeServers(w, r.Servers)
	writeCAUses(w, r)
	switch {
	case r.Halted():
		writeHalt(w, r.Stopped, ca.Verb(carotation.VerbResume))
	case r.Waits && r.Rotation.Stage == castate.StageDistribute:
		fmt.Fprintf(w, "next\t%s, then %s\n", ca.Bring(), ca.Verb(carotation.VerbSign))
	case r.Waits && ca == carotation.Etcd:
		fmt.Fprintf(w, "next\t%s\n", nextOfEtcd(r))
	case r.Waits:
		fmt.Fprintf(w, "next\t%s, once nobody comes with a certificate of the old CA\n", ca.Verb(carotation.VerbDrop))
	}
	return w.Flush()
}

// nextOfEtcd is the next command of a rotation of etcd's CA, with the restarts before it.
func nextOfEtcd(r carotation.Report) string {
	verb := map[castate.Stage]string{castate.StageRestart: carotation.VerbSign, castate.StageWatch: carotation.VerbDrop, castate.StageForget: carotation.VerbResume}[r.Rotation.Stage]
	next := carotation.Etcd.Verb(verb)
	var names []string
	for _, c := range r.Controllers {
		if c.Restart {
			names = append(names, text.Line(c.Name))
		}
	}
	if len(names) > 0 {
		next = "restart kthwd on " + strings.Join(names, ", ") + ", one after the other; then " + next
	}
	return next
}

// writeWorkers shows which kubelets trust the new CA.
func writeWorkers(w io.Writer, all []carotation.Worker) {
	trust := 0
	for _, one := range all {
		trust += writeTrust(w, one.Node, one.Trusts, one.Error)
	}
	if len(all) > 0 {
		fmt.Fprintf(w, "workers\t%d of %d trust the new CA\n", trust, len(all))
	}
}

// writeServers shows which extension API servers do.
func writeServers(w io.Writer, all []carotation.Server) {
	trust := 0
	for _, one := range all {
		trust += writeTrust(w, one.Name, one.Trusts, one.Error)
	}
	if len(all) > 0 {
		fmt.Fprintf(w, "servers\t%d of %d extension API servers trust the new CA\n", trust, len(all))
	}
}

// writeTrust shows one that does not trust the new CA, and returns 1 for one that does.
func writeTrust(w io.Writer, name string, trusts bool, failed string) int {
	switch {
	case failed != "":
		fmt.Fprintf(w, "%s\tcannot be asked: %s\n", text.Line(name), text.Line(failed))
	case trusts:
		return 1
	default:
		fmt.Fprintf(w, "%s\tdoes not trust the new CA yet\n", text.Line(name))
	}
	return 0
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
func (a *app) caRotationWatch(ctx context.Context, t caTarget) error {
	return a.watchRotation(ctx, t.ca.Verb(carotation.VerbStatus), t.ca.Verb(carotation.VerbResume)+" goes on", func(ctx context.Context) (*rotationLook, error) {
		r, err := t.ask(ctx, carotation.Request{Verb: carotation.VerbStatus, Brief: true})
		if err != nil || r.Rotation == nil {
			return nil, err
		}
		s := r.Rotation
		look := &rotationLook{stage: string(s.Stage), stopped: r.Stopped, hint: r.Hint}
		if r.Running {
			look.line = stageLine(s.Stage.Number(), t.ca.Stages(), look.stage, s.String())
		} else {
			look.done = s.String()
		}
		switch {
		case !r.Waits || r.Holder != "":
		case s.Stage == castate.StageForget:
			look.done = s.Again() + "; then " + t.ca.Verb(carotation.VerbResume)
		case s.Stage == castate.StageDistribute || s.Stage == castate.StageRestart:
			look.done = t.ca.Bring() + ", then " + t.ca.Verb(carotation.VerbSign)
		default:
			look.done = fmt.Sprintf("%s signs; certificates of %s are accepted until %s", castate.Short(s.New), castate.Short(s.Old), t.ca.Verb(carotation.VerbDrop))
		}
		return look, nil
	})
}
