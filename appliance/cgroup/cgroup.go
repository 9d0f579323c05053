// Package cgroup reads the control groups of this process (cgroups(7)), of both versions: those
// that limit memory, and those that limit tasks. It reads files only, and changes nothing.
package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Top is the directory at which systems mount their control groups.
const Top = "/sys/fs/cgroup"

// NoLimit is the Limit of a group without one.
const NoLimit = uint64(math.MaxUint64)

// Memory is a memory control group.
type Memory struct{ group }

// Tasks is a control group that limits threads.
type Tasks struct{ group }

// group is a control group. Its name is such as /system.slice/kthwd-controller.service; / is
// the machine's, or a container's own.
type group struct {
	Name string
	dir  string
	v1   bool
}

// Own returns the memory control groups of this process, each followed by those above it.
// There are none where the kernel or a sandbox shows none.
func Own() []Memory {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	return In(Top, string(groups))
}

// In returns the groups in a /proc/PID/cgroup, and those above each, that are mounted at
// top.
func In(top, groups string) (all []Memory) {
	for _, g := range walk(top, groups, "memory") {
		all = append(all, Memory{g})
	}
	return all
}

// Named returns the memory control groups with a name that are mounted at top. There are none
// if they have been removed.
func Named(top, name string) (all []Memory) {
	for _, g := range []group{{name, filepath.Join(top, "memory", name), true}, {name, filepath.Join(top, name), false}} {
		if g.Inode() != 0 {
			all = append(all, Memory{g})
		}
	}
	return all
}

// Inode tells a group from a later one of the same name; 0 if it has been removed.
func (g group) Inode() uint64 {
	var s syscall.Stat_t
	if err := syscall.Stat(g.dir, &s); err != nil {
		return 0
	}
	return s.Ino
}

// HasOne reports whether there is just one process in the group itself.
func (g group) HasOne() bool { return len(strings.Fields(g.read("cgroup.procs"))) == 1 }

// OwnTasks is Own for the groups that limit threads.
func OwnTasks() []Tasks {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	return TasksIn(Top, string(groups))
}

// TasksIn is In for the groups that limit threads.
func TasksIn(top, groups string) (all []Tasks) {
	for _, g := range walk(top, groups, "pids") {
		all = append(all, Tasks{g})
	}
	return all
}

// walk returns the groups of a controller, each followed by those above it.
func walk(top, groups, controller string) (all []group) {
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path
		if len(fields) != 3 || fields[1] != "" && fields[1] != controller {
			continue
		}
		g := group{v1: fields[1] == controller}
		dir := top
		if g.v1 {
			dir = filepath.Join(top, controller)
		}
		for g.Name = filepath.Clean("/" + fields[2]); ; g.Name = filepath.Dir(g.Name) {
			g.dir = filepath.Join(dir, g.Name)
			all = append(all, g)
			if g.Name == "/" { // the machine's has no limit; a container sees its own as /
				break
			}
		}
	}
	return all
}

// Limit is how many threads the group may have and has; ok is false without a limit.
func (t Tasks) Limit() (most, used uint64, ok bool) {
	most, err := strconv.ParseUint(t.read("pids.max"), 10, 64) // otherwise "max" or missing
	if err != nil {
		return 0, 0, false
	}
	used, _ = strconv.ParseUint(t.read("pids.current"), 10, 64)
	return most, used, true
}

// Limit is how many bytes the processes in the group may use, or NoLimit. The kernel
// slows a group above memory.high down, so that counts as a limit, too.
func (m Memory) Limit() uint64 {
	files := []string{"memory.max", "memory.high"}
	if m.v1 {
		files = []string{"memory.limit_in_bytes"}
	}
	limit := NoLimit
	for _, file := range files {
		if n, err := strconv.ParseUint(m.read(file), 10, 64); err == nil { // otherwise "max" or missing
			limit = min(limit, n)
		}
	}
	return limit
}

// Kills is how often the kernel has ended a process of the group for lack of memory, its own
// or the machine's, and with version 2 also of the groups below it. It starts at 0 with the
// group. ok is false where the kernel does not count.
func (m Memory) Kills() (n uint64, ok bool) {
	file := "memory.events"
	if m.v1 {
		file = "memory.oom_control"
	}
	return Counter(m.read(file), "oom_kill")
}

func (g group) read(file string) string {
	text, _ := os.ReadFile(filepath.Join(g.dir, file))
	return strings.TrimSpace(string(text))
}

// Counter finds a number in a text with lines of the form "NAME NUMBER".
func Counter(text, name string) (n uint64, ok bool) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == name {
			n, err := strconv.ParseUint(fields[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// MachineKills is how often the kernel has ended any process of this machine for lack of
// memory, since it was started.
func MachineKills() (n uint64, ok bool) {
	text, _ := os.ReadFile("/proc/vmstat")
	return Counter(string(text), "oom_kill")
}
