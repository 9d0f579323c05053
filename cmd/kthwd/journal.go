package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"

	"kthwd/appliance/logging"
)

// isJournal tells whether w goes to systemd's journal: JOURNAL_STREAM has the
// device and the inode of what systemd has connected (systemd.exec(5)).
func isJournal(w io.Writer) bool {
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

// priority stands before a line to the journal that is not the log's.
func (a *app) priority(at slog.Level) string {
	if isJournal(a.err) {
		return logging.Priority(at)
	}
	return ""
}
