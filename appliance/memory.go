package appliance

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// usableMemory is the machine's memory, or less where a control group of this
// process has a limit (systemd's MemoryMax= and MemoryHigh=, a container's).
func usableMemory() uint64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0
	}
	groups, _ := os.ReadFile("/proc/self/cgroup")
	return min(uint64(info.Totalram)*uint64(info.Unit), memoryLimit("/sys/fs/cgroup", string(groups)))
}

// memoryLimit is the lowest limit of the control group in a /proc/PID/cgroup and
// of those above it (cgroups(7), version 2).
func memoryLimit(root, groups string) uint64 {
	limit := uint64(math.MaxUint64)
	for line := range strings.Lines(groups) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for ; group != "/" && group != "."; group = filepath.Dir(group) {
			for _, file := range []string{"memory.max", "memory.high"} {
				text, _ := os.ReadFile(filepath.Join(root, group, file))
				if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil { // else "max", or not there
					limit = min(limit, n)
				}
			}
		}
	}
	return limit
}
