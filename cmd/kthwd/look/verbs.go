// Package look has the verbs that show something and change nothing but the level of a log: kthwd status,
// config, explain, audit, support, loglevel and version.
package look

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/appliance/program"
	"kthwd/appliance/support"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program, with the verbs of this package.
type app struct{ *cli.App }

// Status makes kthwd status.
func Status(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).statusVerb(l) }

// Config makes kthwd config.
func Config(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).configVerb(l) }

// Explain makes kthwd explain.
func Explain(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).explainVerb(l) }

// Audit makes kthwd audit.
func Audit(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).auditVerb(l) }

// Support makes kthwd support.
func Support(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).supportVerb(l) }

// LogLevel makes kthwd loglevel.
func LogLevel(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).logLevelVerb(l) }

// Version makes kthwd version.
func Version(c *cli.App) *cobra.Command { return (&app{c}).versionVerb() }

// WriteVersion prints the versions.
func WriteVersion(c *cli.App) error { return (&app{c}).version(false) }

// Running is what the process says of its configuration. args are the programs' command lines.
func Running(c *cli.App, l *config.Loader, args map[string][]program.Arg) support.Running {
	return (&app{c}).running(l, args)
}
