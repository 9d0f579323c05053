package backup

import (
	"fmt"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"kthwd/appliance/durable"
	"kthwd/cmd/kthwd/cli"
)

func (a *app) backupKeygenVerb() *cobra.Command {
	const usage = "FILE"
	return &cobra.Command{
		Use:   "keygen " + usage,
		Short: "Make an age identity that opens encrypted archives",
		Long: "Make an age identity in FILE, as age-keygen does, and its recipient in FILE.pub. Keep FILE\n" +
			"where the archives are not, and on no controller: whoever has both can read the archives,\n" +
			"and without it nobody can.",
		Example: "  kthwd backup keygen backup-key.txt\n  kthwd backup create --dir=/mnt/backup --recipient=backup-key.txt.pub",
		Args:    cli.WantArgs(1, 1, usage),
		RunE:    func(_ *cobra.Command, args []string) error { return a.backupKeygen(args[0]) },
	}
}

func (a *app) backupKeygen(file string) error {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	recipient := id.Recipient().String()
	text := fmt.Sprintf("# created: %s\n# public key: %s\n%s\n", time.Now().Format(time.RFC3339), recipient, id)
	if err := durable.Create(file, []byte(text), 0o600); err != nil {
		return err
	}
	if err := durable.Create(file+".pub", []byte(recipient+"\n"), 0o644); err != nil {
		return err
	}
	fmt.Fprintln(a.Out, recipient)
	return durable.Sync(filepath.Dir(file))
}
