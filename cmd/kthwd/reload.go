package main

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"kthwd/appliance/config"
	"kthwd/cmd/kthwd/cli"
)

// reread reads the configuration again, with the command line of this process.
func (a *app) reread() (*config.Loader, error) {
	l := config.NewLoader()
	fs := pflag.NewFlagSet("kthwd", pflag.ContinueOnError)
	l.AddFlags(fs)
	if err := fs.Parse(a.Args); err != nil {
		return nil, l.FlagError(err)
	}
	return l, cli.Read(l)
}

// fileVersion changes when a file is written or replaced.
type fileVersion struct {
	there    bool
	size     int64
	modified time.Time
	device   uint64
	inode    uint64
}

// statFile follows symbolic links, so that a link to another file is a change.
func statFile(path string) (v fileVersion) {
	if path == "" {
		return v
	}
	info, err := os.Stat(path)
	if err != nil {
		return v
	}
	v = fileVersion{there: true, size: info.Size(), modified: info.ModTime()}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		v.device, v.inode = uint64(s.Dev), s.Ino
	}
	return v
}

// watcher decides when to read a changed file: once the next check finds no further
// change. If that configuration is refused, the watcher reads the file once more at the
// next check before it reports the refusal, because the file may be half written.
type watcher struct {
	stat    func() fileVersion
	reload  func() error
	refused func(error)

	seen      fileVersion // at the last check
	unsettled int         // checks since a change that is neither applied nor refused; 0 without one
}

// checkFile is called at intervals.
func (w *watcher) checkFile() {
	if now := w.stat(); now != w.seen {
		w.seen, w.unsettled = now, 1
		return
	}
	if w.unsettled == 0 {
		return
	}
	err := w.reload()
	switch {
	case err == nil:
		w.unsettled = 0
	case w.unsettled == 1:
		w.unsettled = 2
	default:
		w.unsettled = 0
		w.refused(err)
	}
}

// readNow reads the file without a further check: the operator has finished it.
func (w *watcher) readNow() {
	w.seen, w.unsettled = w.stat(), 0
	if err := w.reload(); err != nil {
		w.refused(err)
	}
}

// checkEvery is the time from one check of a file to the next.
const checkEvery = time.Second

// run checks the file until ctx ends, and reads it at once after each receive from asked.
func (w *watcher) run(ctx context.Context, asked <-chan struct{}) {
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			w.readNow()
		case <-ticker.C:
			w.checkFile()
		}
	}
}
