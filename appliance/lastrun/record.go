// Package lastrun keeps a small record of a run of kthwd in its data directory, and tells
// from the record of the run before how that one ended: in order, with an error, by a
// crash, killed by the memory limit, killed by a signal, or by a loss of power.
//
//	run := lastrun.Begin(files, lastrun.Start{…}) // after the lock of the directory
//	run.Before()                                  // how the run before ended
//	run.Keep()                                    // all checks have passed: record this run
//	go run.Beat(ctx, nil)
//	run.Ready(); run.Asked(cause); run.End(err)
//
// A process that is killed cannot write. So the record has what the next start, or kthwd
// status, compares: the machine's boot, the process, the kernel's counters of processes
// ended for lack of memory, and a sign of life every ten seconds. Go's runtime writes the
// trace of a crash to a file beside it.
//
// The record is one block of a fixed size that is overwritten in place, so that the end of
// a run on a full disk is recorded, too.
package lastrun

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"kthwd/appliance/cgroup"
	"kthwd/appliance/paths"
	"kthwd/appliance/text"
)

// Files are the paths of the record and of the traces of crashes. All are in one directory.
type Files struct{ dir string }

// In returns the files in dir.
func In(dir string) Files { return Files{dir} }

// Record is the path of the record.
func (f Files) Record() string { return filepath.Join(f.dir, "run.json") }

// Crash is the path of the trace of a crash of the present run, or of the last one while
// none runs. It is empty if there was none.
func (f Files) Crash() string { return filepath.Join(f.dir, "crash.txt") }

// CrashBefore is the path of the trace of the last crash before the present run.
func (f Files) CrashBefore() string { return filepath.Join(f.dir, "crash-before.txt") }

// Record describes a run as far as it got.
type Record struct {
	Version string    `json:"version"` // of kthwd
	Unit    string    `json:"unit,omitempty"`
	PID     int       `json:"pid"`
	Process string    `json:"process"` // when the process began, in the kernel's ticks: tells it from a later one of the same number
	Boot    string    `json:"boot"`    // the kernel's name for the machine's run
	Started time.Time `json:"started"`
	ReadyAt time.Time `json:"readyAt,omitzero"`
	AskedAt time.Time `json:"askedAt,omitzero"` // when it was asked to stop
	Signal  string    `json:"signal,omitempty"` // by which signal
	EndedAt time.Time `json:"endedAt,omitzero"`
	Error   string    `json:"error,omitempty"` // with which it ended, one line
	Memory  Memory    `json:"memory"`
	Service *Service  `json:"service,omitempty"` // what systemd says of its end
	Before  *End      `json:"before,omitempty"`  // how the run before it ended

	alive time.Time // the last sign of life
}

// Memory is what a run may use, and what the kernel has counted.
type Memory struct {
	Limit uint64 `json:"limit,omitempty"` // bytes; 0 means no limit but the machine's
	Needs uint64 `json:"needs,omitempty"` // bytes that kthwd needs at least

	Cluster uint64 `json:"cluster,omitempty"` // bytes that it needs with the objects of its cluster, as last measured

	Kills map[string]uint64 `json:"kills,omitempty"` // processes ended for lack of memory, by control group; machine is all of them
	Own   *Own              `json:"own,omitempty"`   // the control group of the process; nil where the kernel does not count
}

// Own is the control group of a process. The kernel counts each process that it ends for
// lack of memory in the process's own group, whoever lacked it.
type Own struct {
	Group string `json:"group"`
	Inode uint64 `json:"inode"` // tells it from a later group of the same name
	Alone bool   `json:"alone"` // no other process was in it
}

// Service is what systemd gives to ExecStopPost= (systemd.exec(5)).
type Service struct {
	At     time.Time `json:"at"`
	Result string    `json:"result"`           // SERVICE_RESULT
	Code   string    `json:"code,omitempty"`   // EXIT_CODE
	Status string    `json:"status,omitempty"` // EXIT_STATUS
}

// size is that of a record in its file, the unit in which file systems write.
const size = 4096

// Limits of the two texts in a record that come from elsewhere, so that it fits.
const (
	mostError = 600
	mostText  = 700
)

// ErrNone means that no run is recorded.
var ErrNone = errors.New("no run is recorded")

// Read reads the record of the present or last run.
func (f Files) Read() (Record, error) {
	var r Record
	data, info, err := paths.ReadRegular(f.Record(), 2*size)
	if errors.Is(err, os.ErrNotExist) {
		return r, ErrNone
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(bytes.TrimSpace(data), &r); err != nil {
		return r, fmt.Errorf("%s: %w", f.Record(), err)
	}
	r.alive = info.ModTime()
	return r, nil
}

// Runs reports whether the recorded process is alive.
func (r Record) Runs() bool {
	return r.EndedAt.IsZero() && r.Boot == boot() && r.Process != "" && r.Process == processStart(r.PID)
}

// encode makes the block of a record.
func (r Record) encode() ([]byte, error) {
	data, err := marshal(r)
	if len(data) >= size { // many control groups, or one with a long name
		r.Memory.Kills, r.Memory.Own = nil, nil
		data, err = marshal(r)
	}
	if err != nil || len(data) >= size {
		return nil, errors.Join(err, fmt.Errorf("the record of the run has %d bytes; at most %d fit", len(data), size-1))
	}
	return append(append(data, bytes.Repeat([]byte{' '}, size-1-len(data))...), '\n'), nil
}

func marshal(r Record) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // six bytes for one
	e.SetIndent("", "  ")
	err := e.Encode(r)
	return bytes.TrimSpace(b.Bytes()), err
}

// overwrite writes the block into the file, which exists, and waits for the disk.
func (f Files) overwrite(block []byte) error {
	file, err := os.OpenFile(f.Record(), os.O_WRONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(block, 0)
	return errors.Join(err, file.Sync(), file.Close())
}

// create makes the file with the block, in place of an earlier one.
func (f Files) create(block []byte) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	next := f.Record() + ".new"
	file, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(block)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		os.Remove(next)
		return err
	}
	if err := os.Rename(next, f.Record()); err != nil {
		return err
	}
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// boot is the kernel's name for this run of the machine.
func boot() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// processStart is when a process began, in ticks since the boot; empty if there is none.
func processStart(pid int) string {
	stat, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // after the name, which may hold anything
	const start = 22 - 3                                                      // proc_pid_stat(5); the first two fields are cut off, and 1 is the first
	if len(fields) <= start || fields[0] == "Z" {
		return ""
	}
	return fields[start]
}

// kills reads the kernel's counters for this process.
func kills() map[string]uint64 {
	all := map[string]uint64{}
	for _, g := range cgroup.Own() {
		if n, ok := g.Kills(); ok {
			all[g.Name] += n
		}
	}
	if n, ok := cgroup.MachineKills(); ok {
		all[machine] = n
	}
	return all
}

// ownGroup returns the control group of this process.
func ownGroup() *Own {
	for _, g := range cgroup.Own() {
		if _, ok := g.Kills(); ok {
			return &Own{Group: g.Name, Inode: g.Inode(), Alone: g.HasOne()}
		}
	}
	return nil
}

// killsOf reads the counters of a record's control groups, which need not be those of this
// process.
func (r Record) killsOf() map[string]uint64 {
	all := map[string]uint64{}
	for name := range r.Memory.Kills {
		for _, g := range cgroup.Named(cgroup.Top, name) {
			if n, ok := g.Kills(); ok && name != machine {
				all[name] += n
			}
		}
	}
	if n, ok := cgroup.MachineKills(); ok {
		all[machine] = n
	}
	return all
}

// ownRemains reports whether the record's own control group is still the one that it was.
func (r Record) ownRemains() bool {
	return r.Memory.Own != nil && slices.ContainsFunc(cgroup.Named(cgroup.Top, r.Memory.Own.Group), func(g cgroup.Memory) bool {
		return g.Inode() == r.Memory.Own.Inode
	})
}

// machine is the key of the machine's counter, beside the names of control groups, which
// begin with a slash.
const machine = "machine"

// line makes a text of at most n bytes in one line.
func line(s string, n int) string {
	if s = text.Line(s); len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
