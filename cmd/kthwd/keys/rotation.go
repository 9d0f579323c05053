package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

const (
	// rotationPoll is the time from one look at a rotation to the next.
	rotationPoll = 500 * time.Millisecond

	// tryAgain is the pause after a refusal because it is too early, and sayAgain how often the
	// reason is shown.
	tryAgain = 10 * time.Second
	sayAgain = 10 * time.Minute
)

// withTarget calls do with the kthwd that the flags name. A signal ends its context.
func (a *app) withTarget(ctx context.Context, l *config.Loader, do func(context.Context, cli.Target) error) error {
	t, err := a.Target(l)
	if err != nil {
		return err
	}
	ctx, release := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer release()
	return do(ctx, t)
}

// askTarget asks the running kthwd for what a verb needs.
func askTarget[Out any](ctx context.Context, t cli.Target, path string, in any, within time.Duration) (out Out, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return out, t.Explain(t.Do(ctx, http.MethodPost, path, in, &out))
}

// rotationStatusVerb is the status of a rotation. show prints it, as JSON if asked to.
func (a *app) rotationStatusVerb(l *config.Loader, command, short, long string, show func(ctx context.Context, t cli.Target, asJSON bool) error) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "status [flags]", Short: short, Long: long, Args: cli.NoVerb,
		Example: "  " + command + " status\n  " + command + " status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := cli.CheckOutput(output)
			if err != nil {
				return err
			}
			return a.withTarget(cmd.Context(), l, func(ctx context.Context, t cli.Target) error { return show(ctx, t, asJSON) })
		},
	}
	cli.OutputFlag(cmd, &output)
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

// rotationGoOnVerb is a verb without input that lets a rotation go on, forward or back.
func (a *app) rotationGoOnVerb(l *config.Loader, command, verb, short, long string, run func(context.Context, cli.Target) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " [flags]", Short: short, Long: long, Args: cli.NoVerb, Example: "  " + command + " " + verb,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.withTarget(cmd.Context(), l, run) },
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

// waitFlag gives a verb that may come too early the time for which it is tried again.
func waitFlag(cmd *cobra.Command, wait *time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", 0, "`DURATION` How long to try again while it is too early; 0s refuses at once.")
}

// patiently calls do until it is not too early for that, for so long at most, and shows the reason
// of the wait.
func (a *app) patiently(ctx context.Context, wait time.Duration, do func() error) error {
	end, say := time.Now().Add(wait), time.Now()
	for {
		err := do()
		now := time.Now()
		if !status.IsTooEarly(err) || !now.Before(end) {
			return err
		}
		if !now.Before(say) {
			fmt.Fprintf(a.Err, "waits  %s\n", text.Line(err.Error()))
			say = now.Add(sayAgain)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("interrupted, and nothing has changed: %w", err)
		case <-time.After(min(tryAgain, time.Until(end))):
		}
	}
}

// rotationLook is a rotation at one moment, for watchRotation.
type rotationLook struct {
	stage   string // its name
	line    string // what to say of it; empty once the rotation has ended
	done    string // what to say at the end; empty before
	stopped string // why it does not go on
	hint    string
}

// watchRotation shows the stages of a rotation until it ends, stops or waits for a person. status is the
// command that shows it later, and goOn says what leads on from a stop.
func (a *app) watchRotation(ctx context.Context, status, goOn string, look func(context.Context) (*rotationLook, error)) error {
	var said string
	for {
		r, err := look(ctx)
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted: the running kthwd goes on; " + status + " shows it")
		case err != nil:
			return err
		case r == nil:
			return errors.New("the rotation has disappeared from etcd")
		}
		if r.line != "" && r.line != said {
			said = r.line
			fmt.Fprintln(a.Err, text.Line(r.line))
		}
		switch {
		case r.stopped != "":
			if r.hint != "" {
				goOn = r.hint + "; then " + goOn
			}
			return advice.With(fmt.Errorf("stage %s has stopped: %s", r.stage, text.Line(r.stopped)), goOn)
		case r.done != "":
			fmt.Fprintf(a.Out, "done  %s\n", text.Line(r.done))
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(rotationPoll):
		}
	}
}

// stageLine is a stage for people.
func stageLine(number, of int, stage, rotation string) string {
	return fmt.Sprintf("stage %d of %d, %s: %s", number, of, stage, rotation)
}

// showRotation shows a report as JSON, or as write does. A rotation that has halted is no error of
// the command, but its exit code.
func (a *app) showRotation(report any, asJSON bool, write func() error, halted bool) error {
	err := error(nil)
	if asJSON {
		err = cli.WriteJSON(a.Out, report)
	} else {
		err = write()
	}
	if err == nil && halted {
		err = cli.ErrDegraded
	}
	return err
}

// rotationHead is the first thing that a status says of a rotation.
type rotationHead struct {
	known, running bool // there was one; it is under way
	number, of     int  // of the stage
	stage, what    string
	since          time.Time
	holder         string // the controller that carries it on; empty for none
	halted         bool
}

// writeHead shows the rotation that is under way, or the last one.
func writeHead(w io.Writer, h rotationHead) {
	switch {
	case !h.running && !h.known:
		writeEnded(w, "", time.Time{})
	case !h.running:
		writeEnded(w, h.what, h.since)
	default:
		writeStage(w, h.number, h.of, h.stage, h.since, h.what)
		switch {
		case h.holder != "":
			fmt.Fprintf(w, "\tcarried on by %s\n", text.Line(h.holder))
		case h.halted:
			fmt.Fprintln(w, "\thas stopped")
		}
	}
}

// writeSteps shows the steps of a plan.
func (a *app) writeSteps(steps []string) {
	for _, step := range steps {
		fmt.Fprintln(a.Out, text.Line(step))
	}
}

// beginning is how a rotation of some kind begins.
type beginning struct {
	change                  string // the name of its backup
	onlyPlan, withoutBackup bool
	ask                     func(plan bool) (steps []string, err error)
}

// rotate asks for the plan, makes a backup, and begins the rotation. An error that would stop the
// rotation costs no backup. With onlyPlan it shows the plan alone.
func (a *app) rotate(ctx context.Context, t cli.Target, b beginning) (begun bool, err error) {
	steps, err := b.ask(true)
	if err != nil {
		return false, err
	}
	if b.onlyPlan {
		a.writeSteps(steps)
		return false, nil
	}
	if !b.withoutBackup {
		if err := a.BackupBefore(ctx, t, b.change); err != nil {
			return false, err
		}
	}
	_, err = b.ask(false)
	return err == nil, err
}

// writeStage shows the rotation under way, with the controller that carries it on.
func writeStage(w io.Writer, number, of int, stage string, since time.Time, rotation string) {
	fmt.Fprintf(w, "rotation\tstage %d of %d, %s, since %s: %s\n", number, of, text.Line(stage), since.UTC().Format(time.RFC3339), text.Line(rotation))
}

// writeEnded shows that no rotation is under way, and the last one if there was one.
func writeEnded(w io.Writer, last string, ended time.Time) {
	if last == "" {
		fmt.Fprintln(w, "rotation\tnone")
		return
	}
	fmt.Fprintf(w, "rotation\tnone; the last one, %s, ended at %s\n", text.Line(last), ended.UTC().Format(time.RFC3339))
}

// writeHalt shows why a rotation does not go on, and what makes it.
func writeHalt(w io.Writer, why, resume string) {
	if why != "" {
		fmt.Fprintf(w, "why\t%s\n", text.Line(why))
	}
	fmt.Fprintln(w, "next\t"+resume)
}

// short is the beginning of a hash.
func short(hash string) string {
	hash = strings.TrimPrefix(hash, "sha256:")
	return hash[:min(len(hash), 12)]
}
