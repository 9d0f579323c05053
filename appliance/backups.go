package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"kthwd/appliance/archive"
	"kthwd/appliance/backup"
	"kthwd/appliance/config"
	"kthwd/appliance/etcd"
)

// checkBackup refuses recipients that cannot be parsed, and a hook that cannot be run: a
// schedule would fail hours later.
func checkBackup(c config.Controller) error {
	var errs []error
	if _, err := archive.ParseRecipients(c.BackupRecipients); err != nil {
		errs = append(errs, &config.Problem{Key: "backup-recipient", Text: err.Error(), Hint: "kthwd backup keygen FILE makes an identity, and its recipient in FILE.pub"})
	}
	if c.BackupHook != "" {
		if info, err := os.Stat(c.BackupHook); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			errs = append(errs, &config.Problem{Key: "backup-hook", Text: c.BackupHook + " is not a program", Hint: "name an executable file"})
		}
	}
	return errors.Join(errs...)
}

// newBackups makes the schedule of backups, which also shows those that people make.
func (p *prepared) newBackups(member *etcd.Member) *backup.Schedule {
	return backup.NewSchedule(backup.ScheduleConfig{
		Every: p.cfg.BackupEvery, Server: member.Running, Log: p.o.Logs.Logger("backup"),
		Create: func(ctx context.Context) *exec.Cmd {
			args := []string{"backup", "create", "--config=", "--data-dir=" + p.cfg.DataDir, "--dir=" + p.cfg.BackupDir,
				fmt.Sprintf("--keep=%d", p.cfg.BackupKeep), "--hook=" + p.cfg.BackupHook, "--step-back", "--output=json"}
			return exec.CommandContext(ctx, "/proc/self/exe", args...)
		},
	})
}
