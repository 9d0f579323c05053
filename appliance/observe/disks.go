package observe

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"kthwd/appliance/cause"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// A Place is a path below which kthwd writes. It need not exist yet.
type Place struct {
	Path string
	Use  Use
}

// Use says what is written to a place, and so what a full disk does.
type Use int

// The uses of a place.
const (
	Data   Use = iota // kthwd's own files
	Etcd              // etcd's data
	Audit             // audit records
	Backup            // archives, perhaps on another machine's disk
)

// lost says what goes wrong without room, now and beforehand.
var lost = map[Use][2]string{
	Etcd:   {"etcd stops at the first write that fails", "etcd would stop"},
	Audit:  {"audit records are being lost", "audit records would be lost"},
	Backup: {"no backup is made", "no backup would be made"},
}

// A level is reached when no more than the smaller of a share and a number is left: large
// disks are judged by the number, small ones by the share. It is left with a quarter more.
type level struct {
	health status.Health
	kind   string
	share  float64
	number map[string]uint64 // by unit
}

// The units of what a disk can run out of.
const (
	unitBytes  = "bytes"
	unitInodes = "inodes"
)

const kindFull = "disk_full"

// levels are the thresholds, worst first. etcd allocates its log in pieces of 64 MiB.
var levels = []level{
	{status.Degraded, kindFull, 1, map[string]uint64{unitBytes: 1 << 20, unitInodes: 0}},
	{status.Degraded, "disk_low", 0.05, map[string]uint64{unitBytes: 2 << 30, unitInodes: 10_000}},
	{status.Healthy, "disk_scarce", 0.10, map[string]uint64{unitBytes: 10 << 30, unitInodes: 50_000}},
}

// ext4Keeps is the most blocks that ext4 gives to nobody (fs/ext4/super.c:ext4_calculate_resv_clusters).
const ext4Keeps = 4096

const enough = -1 // in place of an index of levels

func (l level) reached(unit string, free, size uint64, before bool) bool {
	limit := min(l.share*float64(size), float64(l.number[unit]))
	if before {
		limit += max(limit/4, 1)
	}
	return float64(free) <= limit
}

// levelOf returns the index of the level that is reached; before is that of the round before.
func levelOf(unit string, free, size uint64, before int) int {
	if size == 0 { // a file system without a limit on inodes
		return enough
	}
	for at, l := range levels {
		if l.reached(unit, free, size, before != enough && at >= before) {
			return at
		}
	}
	return enough
}

// askTime is how long a file system on another machine may take. One that is away blocks
// the question for as long as it is.
const askTime = time.Second

// disks watches the file systems of all places.
type disks struct {
	places  []Place
	log     *slog.Logger
	pending map[string]chan answer // by path, of those that have not answered; used by measure

	mu   sync.Mutex
	room map[string]room   // by place
	now  []status.Finding  // of the last round
	past map[string]recent // by file system and unit
}

// room is what one file system has left.
type room struct {
	device                 uint64
	free, size             uint64 // bytes
	freeInodes, sizeInodes uint64
	readOnly               bool
}

// answer is that of roomOf.
type answer struct {
	room
	err error
}

// recent is the level of the last round.
type recent struct {
	level int
	since time.Time
}

func newDisks(places []Place, log *slog.Logger) *disks {
	return &disks{places: places, log: log, pending: map[string]chan answer{}, past: map[string]recent{}}
}

// ask is roomOf, and gives up on the file systems of other machines.
func (d *disks) ask(p Place) (room, error) {
	if p.Use != Backup {
		return roomOf(p.Path)
	}
	answers := d.pending[p.Path]
	if answers == nil {
		answers = make(chan answer, 1)
		d.pending[p.Path] = answers
		go func() {
			r, err := roomOf(p.Path)
			answers <- answer{r, err}
		}()
	}
	late := time.NewTimer(askTime)
	defer late.Stop()
	select {
	case a := <-answers:
		delete(d.pending, p.Path)
		return a.room, a.err
	case <-late.C:
		return room{}, fmt.Errorf("the file system of %s does not answer", p.Path)
	}
}

// measure asks each file system once how much room it has, and words the findings.
func (d *disks) measure(now time.Time) {
	rooms, uses, first := map[string]room{}, map[uint64][]Use{}, map[uint64]string{}
	var devices []uint64
	for _, p := range d.places {
		r, err := d.ask(p)
		if err != nil {
			d.log.Debug("file system not asked", "path", p.Path, "err", err)
			continue
		}
		rooms[p.Path] = r
		if _, known := first[r.device]; !known {
			first[r.device] = p.Path
			devices = append(devices, r.device)
		}
		uses[r.device] = append(uses[r.device], p.Use)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room, d.now = rooms, nil
	for _, device := range devices {
		r := rooms[first[device]]
		if d.assessReadOnly(r.readOnly, first[device], uses[device], now) {
			continue
		}
		d.assess(unitBytes, r.free, r.size, first[device], uses[device], now)
		d.assess(unitInodes, r.freeInodes, r.sizeInodes, first[device], uses[device], now)
	}
}

// assess adds a finding about one file system, if there is one.
func (d *disks) assess(unit string, free, size uint64, path string, uses []Use, now time.Time) {
	key := unit + " " + path
	before, known := d.past[key]
	if !known {
		before.level = enough
	}
	at := levelOf(unit, free, size, before.level)
	if at == enough {
		delete(d.past, key)
		if known {
			d.log.Info("there is room again", "path", path, "of", unit)
		}
		return
	}
	if !known || at != before.level {
		before = recent{at, now}
		d.past[key] = before
	}
	f := findingAt(levels[at], unit, free, size, path, uses)
	f.Since = before.since
	d.now = append(d.now, f)
	if before.since.Equal(now) && levels[at].health != status.Healthy {
		d.log.Warn(f.Text)
	}
}

// assessReadOnly adds a finding about a file system that takes no writes, and returns readOnly.
// The kernel makes a file system read-only when it finds damage.
func (d *disks) assessReadOnly(readOnly bool, path string, uses []Use, now time.Time) bool {
	key := "read-only " + path
	before, known := d.past[key]
	switch {
	case !readOnly && known:
		delete(d.past, key)
		d.log.Info("the file system can be written again", "path", path)
	case readOnly && !known:
		before = recent{since: now}
		d.past[key] = before
	}
	if !readOnly {
		return false
	}
	f := status.Finding{
		Health: status.Degraded, Kind: cause.DiskReadOnly, Since: before.since,
		Text: fmt.Sprintf("the file system of %s is read-only", path),
		Do:   "look for errors of the disk: journalctl -k --lines=100; then: mount -o remount,rw " + text.ShellWord(mountOf(path)),
	}
	if effects := effectsOn(uses, true); len(effects) > 0 {
		f.Text += ": " + strings.Join(effects, "; ")
	}
	if slices.Contains(uses, Etcd) {
		f.Health = status.Down
	}
	d.now = append(d.now, f)
	if !known {
		d.log.Warn(f.Text)
	}
	return true
}

// effectsOn says what goes wrong for these uses, now or beforehand.
func effectsOn(uses []Use, now bool) (all []string) {
	for _, u := range []Use{Audit, Etcd, Backup} {
		if effect, ok := lost[u]; ok && slices.Contains(uses, u) {
			all = append(all, effect[map[bool]int{true: 0, false: 1}[now]])
		}
	}
	return all
}

// findingAt words one level. A full disk below etcd is the worst: the process will end.
func findingAt(l level, unit string, free, size uint64, path string, uses []Use) status.Finding {
	f := status.Finding{Health: l.health, Kind: l.kind}
	left := fmt.Sprintf("%s free of %s", text.Bytes(int64(free)), text.Bytes(int64(size)))
	f.Do = "du -x -d1 -h " + text.ShellWord(mountOf(path)) + " | sort -h"
	if unit == unitInodes {
		left = fmt.Sprintf("%d inodes free of %d", free, size)
		f.Do = "du -x -d1 --inodes " + text.ShellWord(mountOf(path)) + " | sort -n"
	}
	full := l.kind == kindFull
	effects := effectsOn(uses, full)
	if full && slices.Contains(uses, Etcd) {
		f.Health = status.Down
	}
	f.Text = fmt.Sprintf("the file system of %s has %s", path, left)
	switch {
	case len(effects) == 0:
	case full:
		f.Text += ": " + strings.Join(effects, "; ")
	default:
		f.Text += "; without room " + strings.Join(effects, " and ")
	}
	return f
}

func (d *disks) findings() []status.Finding {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.now)
}

// roomOf asks the file system of a path, or of the nearest directory above it that exists.
func roomOf(path string) (room, error) {
	var info unix.Stat_t
	err := unix.Stat(path, &info)
	for ; err == unix.ENOENT && filepath.Dir(path) != path; err = unix.Stat(path, &info) {
		path = filepath.Dir(path)
	}
	if err != nil {
		return room{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return room{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	free := s.Bavail
	if free == 0 && os.Geteuid() == 0 { // may use the blocks reserved for root, but not those that ext4 keeps for itself
		free = s.Bfree - min(s.Bfree, ext4Keeps)
	}
	block := uint64(s.Frsize)
	return room{device: info.Dev, free: free * block, size: s.Blocks * block, freeInodes: s.Ffree, sizeInodes: s.Files, readOnly: s.Flags&unix.ST_RDONLY != 0}, nil
}

// mountOf returns the highest directory above path on the same file system.
func mountOf(path string) string {
	r, err := roomOf(path)
	if err != nil {
		return path
	}
	for filepath.Dir(path) != path {
		if above, err := roomOf(filepath.Dir(path)); err != nil || above.device != r.device {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

var (
	freeBytes  = prometheus.NewDesc("kthwd_disk_free_bytes", "Room that kthwd can use on the file system of a path that it writes to.", []string{"path"}, nil)
	sizeBytes  = prometheus.NewDesc("kthwd_disk_size_bytes", "Size of that file system.", []string{"path"}, nil)
	freeInodes = prometheus.NewDesc("kthwd_disk_free_inodes", "Files that can still be made on that file system.", []string{"path"}, nil)
	sizeInodes = prometheus.NewDesc("kthwd_disk_size_inodes", "Files that fit on that file system; 0 without a limit.", []string{"path"}, nil)
)

func (d *disks) collect(ch chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for path, r := range d.room {
		path = strings.ToValidUTF8(text.Line(path), "?")
		for desc, v := range map[*prometheus.Desc]uint64{freeBytes: r.free, sizeBytes: r.size, freeInodes: r.freeInodes, sizeInodes: r.sizeInodes} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(v), path)
		}
	}
}
