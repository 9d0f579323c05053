package look

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
	"kthwd/appliance/logging"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) logLevelVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log-level [LEVEL | COMPONENT=LEVEL]... [flags]",
		Short: "Show or change the log levels of the running kthwd",
		Long: "Show the log levels of the running kthwd, or change them until it ends. A level is error,\n" +
			"warn, info, debug or a number n, which shows upstream's lines of V(n-1) and below. A LEVEL\n" +
			"alone applies to all components without a level of their own. A process that is only a\n" +
			"load balancer has no socket for this: SIGUSR1 turns its debug lines on and off.",
		Example: "  kthwd log-level etcd=debug kube-apiserver=4\n  kthwd log-level warn",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.logLevel(cmd.Context(), l, args) },
	}
	l.AddFlags(cmd.Flags(), "config", "data-dir")
	return cmd
}

func (a *app) logLevel(ctx context.Context, l *config.Loader, args []string) error {
	for _, arg := range args {
		if _, _, err := logging.ParseLevel(arg); err != nil {
			return cli.Usagef("%v", err)
		}
	}
	c, err := a.Target(l)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	levels, err := c.Levels(ctx)
	if errors.Is(err, status.ErrNotRunning) {
		r, asked := c.Status(ctx)
		if asked != nil && c.Socket == "" {
			return asked
		}
		if asked == nil && r.LB != nil {
			return advice.With(
				fmt.Errorf("the load balancer (process %d) has no socket to change its log levels on", r.PID),
				fmt.Sprintf("kill -USR1 %d turns its debug lines on and off; or change log-level in its file", r.PID),
			)
		}
	}
	if err != nil {
		return c.Explain(err)
	}
	if err := knownComponents(args, levels); err != nil {
		return err
	}
	if len(args) > 0 {
		if levels, err = c.SetLevels(ctx, args...); err != nil {
			return err
		}
	}
	return a.showLevels(levels)
}

// knownComponents refuses a level for a component that does not log.
func knownComponents(args []string, levels map[string]string) error {
	for _, arg := range args {
		component, _, _ := logging.ParseLevel(arg)
		if _, ok := levels[component]; !ok && component != logging.All {
			return advice.With(cli.Usagef("unknown component %q", component), "components: "+strings.Join(slices.Sorted(maps.Keys(levels)), ", "))
		}
	}
	return nil
}

func (a *app) showLevels(levels map[string]string) error {
	width := len("COMPONENT")
	for component := range levels {
		width = max(width, len(component))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s  LEVEL\n", width, "COMPONENT")
	for _, component := range slices.Sorted(maps.Keys(levels)) {
		fmt.Fprintf(&b, "%-*s  %s\n", width, text.Line(component), text.Line(levels[component]))
	}
	_, err := fmt.Fprint(a.Out, b.String())
	return err
}
