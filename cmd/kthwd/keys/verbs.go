// Package keys has the verbs of certificates and keys: kthwd pki and kthwd encryption.
package keys

import (
	"github.com/spf13/cobra"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// app is one run of the program, with the verbs of this package.
type app struct{ *cli.App }

// PKI makes kthwd pki.
func PKI(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).pkiVerb(l) }

// Encryption makes kthwd encryption.
func Encryption(c *cli.App, l *config.Loader) *cobra.Command { return (&app{c}).encryptionVerb(l) }
