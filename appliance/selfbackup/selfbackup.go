// Package selfbackup is the part that a running controller has in its own backups: the schedule, the
// copy of its data before an upgrade, a backup before a change that a verb makes, and the copy of
// the database for kthwd backup create. Each backup is made by a child process: package backup.
package selfbackup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup"
	"kthwd/appliance/backup/keep"
	"kthwd/appliance/config"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
)

// CheckSettings refuses recipients that cannot be parsed, and a hook that cannot be run: a
// schedule would fail hours later.
func CheckSettings(c config.Controller) error {
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

// NewSchedule makes the schedule of a controller's backups, which also shows those that people
// make. server returns nil before etcd has started.
func NewSchedule(c config.Controller, server func() *embed.Etcd, log *slog.Logger) *backup.Schedule {
	return backup.NewSchedule(backup.ScheduleConfig{
		Every: c.BackupEvery, Keys: len(c.BackupRecipients) > 0, Layout: c.Layout(), Server: server, Log: log,
		Create: func(ctx context.Context) *exec.Cmd {
			args := []string{"backup", "create", "--config=", "--data-dir=" + c.DataDir, "--dir=" + c.BackupDir,
				fmt.Sprintf("--keep=%d", c.BackupKeep), "--hook=" + c.BackupHook, "--step-back", "--output=json"}
			return exec.CommandContext(ctx, "/proc/self/exe", args...)
		},
	})
}

// KeepCopy copies the data before a newer minor opens them. kthwd is the version of this program.
// working is called from time to time, and may be nil.
func KeepCopy(ctx context.Context, c config.Controller, kthwd string, working func(), log *slog.Logger) error {
	l := c.Layout()
	u, err := etcdfiles.FindUpgrade(l, etcdfiles.Versions(kthwd))
	if err != nil {
		return err
	}
	if u == nil {
		return keep.ForgetUpgrade(l)
	}
	if !c.UpgradeCopy {
		log.Warn("no copy of the data before the upgrade: --copy-before-upgrade is false", "upgrade", u.String())
		return nil
	}
	log.Info("the data are copied before the upgrade", "upgrade", u.String(), "to", l.Kept())
	kept, err := keep.Keep(ctx, keep.Options{
		Layout: l, WAL: program.Value(program.ParseUser(c.EtcdArgs), "wal-dir"), Upgrade: *u, Log: log, Working: working,
		Opener: func(ctx context.Context, dir string) *exec.Cmd {
			return exec.CommandContext(ctx, "/proc/self/exe", "backup", "open", dir)
		},
	})
	if err != nil {
		return err
	}
	text := "the data from before the upgrade are kept"
	if kept.Again {
		text = "the data from before the upgrade are kept, since an earlier start of it"
	}
	log.Info(text, "upgrade", u.String(), "dir", kept.Dir, "revision", kept.Revision, "mib", kept.Size>>20, "hint", "README there says how to go back")
	return nil
}

// PathBackup makes a backup before a change: POST, with the change as ?for=.
const PathBackup = "/backup"

// KeptBackups is how many archives of one kind of change stay where no backups are configured.
const KeptBackups = 2

// change is a name for a change, which becomes a directory's.
var change = regexp.MustCompile(`^[a-z][a-z-]{2,40}$`)

// BeforeChange returns the handler with which a verb makes a backup before its change.
func BeforeChange(c config.Controller, log *slog.Logger) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"POST " + PathBackup: func(w http.ResponseWriter, r *http.Request) {
		connection := http.NewResponseController(w) // a large database takes longer than other answers may
		if err := errors.Join(connection.SetReadDeadline(time.Time{}), connection.SetWriteDeadline(time.Time{})); err != nil {
			status.Refuse(w, http.StatusInternalServerError, err)
			return
		}
		made, err := before(r.Context(), c, r.URL.Query().Get("for"), log)
		if err != nil {
			status.Refuse(w, http.StatusConflict, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(made) // an error means that the client has gone
	}}
}

// before makes an archive: as the settings say, if they name a directory and a recipient,
// and otherwise in the data directory, which only kthwd's user can read, with all keys.
func before(ctx context.Context, c config.Controller, why string, log *slog.Logger) (backup.Created, error) {
	if !change.MatchString(why) {
		return backup.Created{}, fmt.Errorf("%q is no name of a change", why)
	}
	args := []string{"backup", "create", "--config=", "--data-dir=" + c.DataDir, "--output=json"}
	if c.BackupDir != "" && len(c.BackupRecipients) > 0 {
		args = append(args, "--dir="+c.BackupDir)
	} else {
		dir := filepath.Join(c.Layout().Kept(), "before-"+why)
		args = append(args, "--dir="+dir, "--plain-keys", "--unrecorded", fmt.Sprintf("--keep=%d", KeptBackups))
	}
	made, err := backup.RunCreate(exec.CommandContext(ctx, "/proc/self/exe", args...))
	if err != nil {
		return made, advice.With(fmt.Errorf("no backup was made, and nothing has changed: %w", err), "remove the cause; or go on without one: --without-backup")
	}
	log.Info("backup made and verified before a change", "change", why, "file", made.File, "revision", made.Verified.Manifest.Revision)
	return made, nil
}
