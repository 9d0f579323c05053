// Package etcd has kthwd etcd: the databases of the members, the room in them, and the recovery of a lost quorum.
package etcd

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program, with the verbs of this package.
type app struct{ *cli.App }

// Verb makes kthwd etcd.
func Verb(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).etcdVerb(l) }
