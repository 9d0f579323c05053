package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/lastrun"
	"kthwd/cmd/kthwd/cli"
)

// endedVerb serves ExecStopPost= of the units, so help hides it: systemd knows
// better than the next start why a process has ended, for example that the memory limit
// was reached, and removes the control group that counted it.
func (a *app) endedVerb(l *config.Loader) *cobra.Command {
	cmd := &cobra.Command{
		Use:    "ended [flags]",
		Short:  "Add systemd's result to the record of the run that has just ended",
		Hidden: true,
		Args:   cli.NoVerb,
		RunE:   func(*cobra.Command, []string) error { return a.ended(l) },
	}
	l.AddFlags(cmd.Flags())
	return cmd
}

// ended reads the variables of systemd.exec(5).
func (a *app) ended(l *config.Loader) error {
	result := os.Getenv("SERVICE_RESULT")
	if result == "" {
		return cli.Usagef("SERVICE_RESULT is not set: only systemd runs this verb, from ExecStopPost=")
	}
	if err := l.Load(); err != nil {
		return err
	}
	files, ok := runOf(l.Config)
	if !ok {
		return nil
	}
	return files.Note(lastrun.Service{
		At: time.Now(), Result: result, Code: os.Getenv("EXIT_CODE"), Status: os.Getenv("EXIT_STATUS"),
	})
}
