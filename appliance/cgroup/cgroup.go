// Package cgroup reads the memory control groups of this process (cgroups(7)), of both
// versions. It reads files only, and changes nothing.
package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Top is the directory at which systems mount their control groups.
const Top = "/sys/fs/cgroup"

// NoLimit is the Limit of a group without one.
const NoLimit = uint64(math.MaxUint64)

// Memory is a memory control group.
type Memory struct {
	Name string // such as /system.slice/kthwd-controller.service; / is the machine's, or a container's own
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
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path
		if len(fields) != 3 || fields[1] != "" && fields[1] != "memory" {
			continue
		}
		m := Memory{v1: fields[1] == "memory"}
		dir := top
		if m.v1 {
			dir = filepath.Join(top, "memory")
		}
		for m.Name = filepath.Clean("/" + fields[2]); ; m.Name = filepath.Dir(m.Name) {
			m.dir = filepath.Join(dir, m.Name)
			all = append(all, m)
			if m.Name == "/" { // the machine's has no limit; a container sees its own as /
				break
			}
		}
	}
	return all
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

// Kills is how often the kernel has ended a process of the group for lack of memory, and
// with version 2 also of the groups below it. It starts at 0 with the group. ok is false
// where the kernel does not count.
func (m Memory) Kills() (n uint64, ok bool) {
	file := "memory.events"
	if m.v1 {
		file = "memory.oom_control"
	}
	return Counter(m.read(file), "oom_kill")
}

func (m Memory) read(file string) string {
	text, _ := os.ReadFile(filepath.Join(m.dir, file))
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
