// Package upgrade has kthwd upgrade: the check before, the view of one under way, its end and the way back.
package upgrade

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program, with the verbs of this package.
type app struct{ *cli.App }

// Verb makes kthwd upgrade.
func Verb(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).upgradeVerb(l) }
