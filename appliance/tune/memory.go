package tune

import (
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

const cgroups = "/sys/fs/cgroup"

// UsableMemory is the machine's memory, or less where a control group of this
// process has a limit (systemd's MemoryMax= and MemoryHigh=, a container's).
func UsableMemory() uint64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0
	}
	return min(uint64(info.Totalram)*uint64(info.Unit), groupMemory())
}

// groupMemory is the limit of this process' control groups, or the largest number
// if there is none.
func groupMemory() uint64 {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	return memoryLimit(cgroups, string(groups))
}

// memoryLimit is the lowest limit of the control groups in a /proc/PID/cgroup and
// of those above them, of both versions (cgroups(7)).
func memoryLimit(root, groups string) uint64 {
	limit := uint64(math.MaxUint64)
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path
		if len(fields) != 3 {
			continue
		}
		dir, files := root, []string{"memory.max", "memory.high"}
		switch fields[1] {
		case "":
		case "memory": // version 1
			dir, files = filepath.Join(root, "memory"), []string{"memory.limit_in_bytes"}
		default:
			continue
		}
		for group := filepath.Clean("/" + fields[2]); ; group = filepath.Dir(group) {
			for _, file := range files {
				text, _ := os.ReadFile(filepath.Join(dir, group, file))
				if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64); err == nil { // otherwise "max" or missing
					limit = min(limit, n)
				}
			}
			if group == "/" { // the machine's has no limit; a container sees its own as /
				break
			}
		}
	}
	return limit
}

// noLimit is the value that version 1 of control groups reports for no limit: the
// largest number of whole pages. No larger value is a limit.
const noLimit = math.MaxInt64 &^ 0xffff

// softLimit is the limit of Go's heap and all else that the runtime holds, in
// bytes, for a process whose control groups allow limit: a tenth is left for what
// the runtime does not count. It is the largest number if there is no limit.
func softLimit(limit uint64) int64 {
	if limit >= noLimit {
		return math.MaxInt64
	}
	return int64(limit / 10 * 9)
}

// LimitMemory makes the garbage collector work harder before the kernel ends a
// process that has reached the limit of its control group, as GOMEMLIMIT would;
// if the user has set GOMEMLIMIT, that applies instead. It is for a process without a controller: Run
// does the same by itself.
func LimitMemory(log *slog.Logger) {
	if limit := softLimit(groupMemory()); limit != math.MaxInt64 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
		logLimit(log, limit)
	}
}

// logLimit logs a limit, because nothing else explains a collector that works hard.
func logLimit(log *slog.Logger, limit int64) {
	if limit != math.MaxInt64 {
		log.Info("memory is limited by the control group", "limit-mib", limit>>20)
	}
}
