package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"

	"kthwd/appliance/logging"
)

// IsJournal reports whether w goes to systemd's journal: JOURNAL_STREAM has the device
// and the inode of the stream that systemd has connected (systemd.exec(5)).
func IsJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

// Priority is the prefix of a line to the journal that does not come from the log.
func (a *App) Priority(at slog.Level) string {
	if IsJournal(a.Err) {
		return logging.Priority(at)
	}
	return ""
}
