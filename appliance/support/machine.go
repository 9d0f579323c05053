package support

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"kthwd/appliance/cgroup"
)

// Machine describes the machine, and what a process may use there. pid is the running
// kthwd; 0 means this process.
func Machine(pid int) []byte {
	var b bytes.Buffer
	of := "self"
	if pid != 0 {
		of = fmt.Sprint(pid)
	}
	fmt.Fprintf(&b, "processors  %d, %s/%s\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	groups, _ := os.ReadFile("/proc/" + of + "/cgroup")
	for _, g := range cgroup.In(cgroup.Top, string(groups)) {
		if limit := g.Limit(); limit < cgroup.NoLimit/4 {
			fmt.Fprintf(&b, "memory limit of %s: %d MiB\n", g.Name, limit>>20)
		}
		if n, ok := g.Kills(); ok && n > 0 {
			fmt.Fprintf(&b, "out-of-memory kills in %s: %d\n", g.Name, n)
		}
	}
	if n, ok := cgroup.MachineKills(); ok {
		fmt.Fprintf(&b, "out-of-memory kills on this machine: %d\n", n)
	}
	for _, file := range []string{
		"/proc/version", "/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/meminfo",
		"/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory",
		"/proc/" + of + "/cgroup", "/proc/" + of + "/limits", "/proc/" + of + "/status", "/proc/diskstats",
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			text = []byte(err.Error() + "\n")
		}
		fmt.Fprintf(&b, "\n== %s\n%s", file, text)
	}
	return b.Bytes()
}

// Disks describes the file systems of the directories: their mounts, space and inodes.
func Disks(dirs ...string) []byte {
	var b bytes.Buffer
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, dir := range dirs {
		var s syscall.Statfs_t
		if err := syscall.Statfs(dir, &s); err != nil {
			fmt.Fprintf(&b, "%s: %v\n", dir, err)
			continue
		}
		unit := uint64(s.Bsize)
		fmt.Fprintf(&b, "%s: %d MiB, %d MiB free, %d of %d inodes free\n  %s\n", dir, s.Blocks*unit>>20, s.Bavail*unit>>20, s.Ffree, s.Files, mountOf(string(mounts), dir))
	}
	return b.Bytes()
}

// mountOf is the line of a mountinfo with the mount that has dir (proc_pid_mountinfo(5)).
func mountOf(mounts, dir string) (found string) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	longest := 0
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) > 5 && (dir == f[4] || strings.HasPrefix(dir, strings.TrimSuffix(f[4], "/")+"/")) && len(f[4]) >= longest {
			longest, found = len(f[4]), strings.TrimSpace(line)
		}
	}
	return found
}

// Files lists what is below a directory, with modes, owners and sizes, but no content.
func Files(dir string) []byte {
	var b bytes.Buffer
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", path, err)
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil // it has gone
		}
		owner := ""
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			owner = fmt.Sprintf("%d:%d", s.Uid, s.Gid)
		}
		fmt.Fprintf(&b, "%s %9s %12d %s %q\n", info.Mode(), owner, info.Size(), info.ModTime().UTC().Format(time.RFC3339), path)
		return nil
	})
	return b.Bytes()
}
