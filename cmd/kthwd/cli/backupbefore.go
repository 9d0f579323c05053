package cli

import (
	"context"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"kthwd/appliance/backup"
	"kthwd/appliance/selfbackup"
	"kthwd/appliance/text"
)

// WithoutBackupFlag adds the flag that leaves out the backup before a change.
func WithoutBackupFlag(cmd *cobra.Command, without *bool) {
	cmd.Flags().BoolVar(without, "without-backup", false, "Make no backup first.")
}

// BackupBefore lets the running kthwd make a backup before a change, and says where it is.
func (a *App) BackupBefore(ctx context.Context, t Target, change string) error {
	if IsTerminal(a.Err) {
		fmt.Fprintln(a.Err, "A backup is made and verified first; --without-backup leaves it out.")
	}
	var made backup.Created
	if err := t.Explain(t.Do(ctx, http.MethodPost, selfbackup.PathBackup+"?for="+change, nil, &made)); err != nil {
		return err
	}
	fmt.Fprintf(a.Out, "backup  %s  revision %d, verified; kthwd backup restore goes back to it\n", text.Line(made.File), made.Verified.Manifest.Revision)
	return nil
}
