package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup"
	"kthwd/appliance/config"
	"kthwd/appliance/etcd"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/program"
	"kthwd/appliance/status"
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
		Every: p.cfg.BackupEvery, Keys: len(p.cfg.BackupRecipients) > 0, Layout: p.layout, Server: member.Running, Log: p.o.Logs.Logger("backup"),
		Create: func(ctx context.Context) *exec.Cmd {
			args := []string{"backup", "create", "--config=", "--data-dir=" + p.cfg.DataDir, "--dir=" + p.cfg.BackupDir,
				fmt.Sprintf("--keep=%d", p.cfg.BackupKeep), "--hook=" + p.cfg.BackupHook, "--step-back", "--output=json"}
			return exec.CommandContext(ctx, "/proc/self/exe", args...)
		},
	})
}

// keepCopy copies the data before a newer minor opens them.
func (p *prepared) keepCopy(ctx context.Context) error {
	u, err := etcdfiles.FindUpgrade(p.layout, etcdfiles.Versions(p.o.Version))
	if err != nil {
		return err
	}
	if u == nil {
		return backup.ForgetUpgrade(p.layout)
	}
	if !p.cfg.UpgradeCopy {
		p.log.Warn("no copy of the data before the upgrade: --copy-before-upgrade is false", "upgrade", u.String())
		return nil
	}
	p.log.Info("the data are copied before the upgrade", "upgrade", u.String(), "to", p.layout.Kept())
	kept, err := backup.Keep(ctx, backup.KeepOptions{
		Layout: p.layout, WAL: program.Value(program.ParseUser(p.cfg.EtcdArgs), "wal-dir"), Upgrade: *u, Log: p.log, Working: p.o.OnWork,
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
	p.log.Info(text, "upgrade", u.String(), "dir", kept.Dir, "revision", kept.Revision, "mib", kept.Size>>20, "hint", "README there says how to go back")
	return nil
}

// PathDatabase is a copy of the database of this member and its SHA-256: GET. The headers have the
// state of its store; a kthwd that sends none is older.
const (
	PathDatabase    = "/database"
	headerRevision  = "Kthwd-Revision"
	headerCompacted = "Kthwd-Compact-Revision"
)

// OpenDatabase asks the running kthwd for a copy of its database.
func OpenDatabase(ctx context.Context, running status.Client) (*backup.Copy, error) {
	body, header, err := running.Open(ctx, PathDatabase)
	if err != nil {
		return nil, err
	}
	size, errSize := strconv.ParseInt(header.Get("Content-Length"), 10, 64)
	revision, errRevision := strconv.ParseInt(header.Get(headerRevision), 10, 64)
	compacted, errCompacted := strconv.ParseInt(header.Get(headerCompacted), 10, 64)
	if errors.Join(errSize, errRevision, errCompacted) != nil {
		return backup.NewCopy(body, 0, etcd.Store{}), nil
	}
	return backup.NewCopy(body, size, etcd.Store{Revision: revision, Compacted: compacted}), nil
}

// patience is how long a client of PathDatabase may take nothing before the copy ends: as long as
// it lasts, the database gives back no page.
const patience = 5 * time.Minute

// privateDatabase returns the handler that gives kthwd backup create the database.
func privateDatabase(open func() (*etcd.Copy, error)) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"GET " + PathDatabase: func(w http.ResponseWriter, r *http.Request) {
		c, err := open()
		if err != nil {
			status.Refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		defer c.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(c.Size, 10))
		if c.Store.Revision > 0 {
			w.Header().Set(headerRevision, strconv.FormatInt(c.Store.Revision, 10))
			w.Header().Set(headerCompacted, strconv.FormatInt(c.Store.Compacted, 10))
		}
		if err := c.Send(r.Context(), patient{w, http.NewResponseController(w)}); err != nil {
			panic(http.ErrAbortHandler) // the client sees that the answer breaks off
		}
	}}
}

// patient is a writer to a client that has patience for each write: the client writes to a disk.
type patient struct {
	io.Writer
	connection *http.ResponseController
}

func (p patient) Write(data []byte) (int, error) {
	if err := p.connection.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return p.Writer.Write(data)
}

// PathBackup makes a backup before a change: POST, with the change as ?for=.
const PathBackup = "/backup"

// KeptBackups is how many archives of one kind of change stay where no backups are configured.
const KeptBackups = 2

// change is a name for a change, which becomes a directory's.
var change = regexp.MustCompile(`^[a-z][a-z-]{2,40}$`)

// privateBackup returns the handler with which a verb makes a backup before its change.
func (p *prepared) privateBackup() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"POST " + PathBackup: func(w http.ResponseWriter, r *http.Request) {
		connection := http.NewResponseController(w) // a large database takes longer than other answers may
		if err := errors.Join(connection.SetReadDeadline(time.Time{}), connection.SetWriteDeadline(time.Time{})); err != nil {
			status.Refuse(w, http.StatusInternalServerError, err)
			return
		}
		made, err := p.backupBefore(r.Context(), r.URL.Query().Get("for"))
		if err != nil {
			status.Refuse(w, http.StatusConflict, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(made) // an error means that the client has gone
	}}
}

// backupBefore makes an archive: as the settings say, if they name a directory and a recipient,
// and otherwise in the data directory, which only kthwd's user can read, with all keys.
func (p *prepared) backupBefore(ctx context.Context, why string) (backup.Created, error) {
	if !change.MatchString(why) {
		return backup.Created{}, fmt.Errorf("%q is no name of a change", why)
	}
	args := []string{"backup", "create", "--config=", "--data-dir=" + p.cfg.DataDir, "--output=json"}
	if p.cfg.BackupDir != "" && len(p.cfg.BackupRecipients) > 0 {
		args = append(args, "--dir="+p.cfg.BackupDir)
	} else {
		dir := filepath.Join(p.layout.Kept(), "before-"+why)
		args = append(args, "--dir="+dir, "--plain-keys", "--unrecorded", fmt.Sprintf("--keep=%d", KeptBackups))
	}
	made, err := backup.RunCreate(exec.CommandContext(ctx, "/proc/self/exe", args...))
	if err != nil {
		return made, advice.With(fmt.Errorf("no backup was made, and nothing has changed: %w", err), "remove the cause; or go on without one: --without-backup")
	}
	p.log.Info("backup made and verified before a change", "change", why, "file", made.File, "revision", made.Verified.Manifest.Revision)
	return made, nil
}
