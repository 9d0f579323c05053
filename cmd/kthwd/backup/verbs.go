// Package backup has kthwd backup: archives that are made, verified, listed, deleted and restored.
package backup

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program, with the verbs of this package.
type app struct{ *cli.App }

// Verb makes kthwd backup.
func Verb(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).backupVerb(l) }
