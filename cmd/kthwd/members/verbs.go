// Package members has the verbs about the parts of a cluster: controllers (kthwd member, kthwd join),
// workers (kthwd node) and users (kthwd kubeconfig).
package members

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program, with the verbs of this package.
type app struct{ *cli.App }

// Member makes kthwd member.
func Member(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).memberVerb(l) }

// Join makes kthwd join.
func Join(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).joinVerb(l) }

// Node makes kthwd node.
func Node(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).nodeVerb(l) }

// Kubeconfig makes kthwd kubeconfig.
func Kubeconfig(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).kubeconfigVerb(l) }
