package tune

import (
	"context"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"syscall"

	"kthwd/appliance/cgroup"
	"kthwd/appliance/supervise"
)

// UsableMemory is the machine's memory, or less where a control group of this
// process has a limit (systemd's MemoryMax= and MemoryHigh=, a container's).
func UsableMemory() uint64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return 0
	}
	return min(uint64(info.Totalram)*uint64(info.Unit), GroupMemory())
}

// GroupMemory is the limit of this process' control groups, or cgroup.NoLimit.
func GroupMemory() uint64 {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	return memoryLimit(cgroup.Top, string(groups))
}

// memoryLimit is the lowest limit of the control groups in a /proc/PID/cgroup and
// of those above them, of both versions (cgroups(7)).
func memoryLimit(root, groups string) uint64 {
	limit := cgroup.NoLimit
	for _, g := range cgroup.In(root, groups) {
		limit = min(limit, g.Limit())
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
	if limit := softLimit(GroupMemory()); limit != math.MaxInt64 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit)
		logLimit(log, limit)
	}
}

// FollowLimit applies later changes of the limit, too, until ctx ends. It is for a process that has
// called LimitMemory.
func FollowLimit(ctx context.Context, log *slog.Logger) {
	t := &Tuner{log: log, limit: softLimit(GroupMemory())}
	for ctx.Err() == nil {
		t.followLimit(GroupMemory(), UsableMemory())
		supervise.Sleep(ctx, followEvery)
	}
}

// shown is a limit in MiB, for people; 0 for none.
func shown(limit int64) int64 {
	if limit == math.MaxInt64 {
		return 0
	}
	return limit >> 20
}

// logLimit logs a limit, because nothing else explains a collector that works hard.
func logLimit(log *slog.Logger, limit int64) {
	if limit != math.MaxInt64 {
		log.Info("memory is limited by the control group", "limit-mib", limit>>20)
	}
}
