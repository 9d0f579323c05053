package observe

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/status"
)

// Shares of the limit at which the finding begins and ends.
const (
	descriptorsMany   = 0.8
	descriptorsEnough = 0.7
)

// descriptors compares the process's descriptors with its limit.
type descriptors struct {
	log  *slog.Logger
	unit string

	mu          sync.Mutex
	open, limit uint64
	since       time.Time // zero while there are few
}

func (d *descriptors) count(now time.Time) {
	var limit unix.Rlimit
	open, err := openDescriptors()
	if err == nil {
		err = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		d.log.Debug("descriptors not counted", "err", err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.compare(open, limit.Cur, now)
}

func (d *descriptors) compare(open, limit uint64, now time.Time) {
	d.open, d.limit = open, limit
	switch share := float64(open) / float64(limit); {
	case share >= descriptorsMany && d.since.IsZero():
		d.since = now
		d.log.Warn("many file descriptors are in use", "open", open, "limit", limit)
	case share < descriptorsEnough:
		d.since = time.Time{}
	}
}

// openDescriptors counts without reading the whole directory where the kernel knows the
// number (since Linux 6.2).
func openDescriptors() (uint64, error) {
	const dir = "/proc/self/fd"
	if info, err := os.Stat(dir); err == nil && info.Size() > 0 {
		return uint64(info.Size()), nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	return uint64(len(names)), err
}

func (d *descriptors) findings() []status.Finding {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since.IsZero() {
		return nil
	}
	return []status.Finding{{
		Health: status.Degraded, Kind: "descriptors", Since: d.since,
		Text: fmt.Sprintf("%d of %d file descriptors are in use: at the limit no connection and no file can be opened", d.open, d.limit),
		Do:   fmt.Sprintf("systemctl edit %[1]s, with LimitNOFILE=%[2]d below [Service], then systemctl restart %[1]s", d.unit, max(65536, 4*d.limit)),
	}}
}
