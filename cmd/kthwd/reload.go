package main

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"kthwd/appliance/config"
)

// reread reads the configuration again, as the command line of this process says.
func (a *app) reread() (*config.Loader, error) {
	l := config.NewLoader()
	fs := pflag.NewFlagSet("kthwd", pflag.ContinueOnError)
	l.AddFlags(fs)
	if err := fs.Parse(a.args); err != nil {
		return nil, l.FlagError(err)
	}
	return l, read(l)
}

// read does what follows the command line.
func read(l *config.Loader) error {
	if err := l.Load(); err != nil {
		return err
	}
	if err := l.Resolve(); err != nil {
		return err
	}
	return l.Validate()
}

// version of a file: what differs when somebody has written or replaced it.
type fileVersion struct {
	there    bool
	size     int64
	modified time.Time
	device   uint64
	inode    uint64
}

// statFile follows symbolic links, so that a link that points elsewhere is a change.
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

// watcher decides when a file that changes is read. A change is read when the
// file has been as it is for one look more; one that is refused gets another
// look before anybody hears of it, for it may be half written.
type watcher struct {
	stat    func() fileVersion
	reload  func() error
	refused func(error)

	seen  fileVersion // when it was last looked at
	doubt int         // looks since a change that is not settled; 0: it is
}

// look is called at intervals.
func (w *watcher) look() {
	if now := w.stat(); now != w.seen {
		w.seen, w.doubt = now, 1
		return
	}
	if w.doubt == 0 {
		return
	}
	err := w.reload()
	switch {
	case err == nil:
		w.doubt = 0
	case w.doubt == 1:
		w.doubt = 2
	default:
		w.doubt = 0
		w.refused(err)
	}
}

// now reads the file without another look: somebody says that it is right.
func (w *watcher) now() {
	w.seen, w.doubt = w.stat(), 0
	if err := w.reload(); err != nil {
		w.refused(err)
	}
}

// lookEvery is how often a file is looked at.
const lookEvery = time.Second

// run looks at the file until ctx ends, and at once after each receive from asked.
func (w *watcher) run(ctx context.Context, asked <-chan struct{}) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
			w.now()
		case <-ticker.C:
			w.look()
		}
	}
}
