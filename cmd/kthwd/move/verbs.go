// Package move has the verbs of the way into kthwd and out of it: kthwd adopt and kthwd eject.
package move

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program, with the verbs of this package.
type app struct{ *cli.App }

// Adopt makes kthwd adopt.
func Adopt(c *cli.App) *cobra.Command { return (&app{c}).adoptVerb() }

// Eject makes kthwd eject.
func Eject(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).ejectVerb(l) }
