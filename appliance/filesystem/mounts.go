package filesystem

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kthwd/appliance/text"
)

// typeOf returns the type of the file system of the path and where it is mounted. Where
// /proc does not tell, the type is the number that statfs(2) returns.
func typeOf(path string) (kind, mount string) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if kind, mount = find(string(mounts), path); kind != "" {
		return text.Line(kind), text.Line(mount)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return "unknown type", "an unknown place"
	}
	return fmt.Sprintf("type %#x", uint32(fs.Type)), "an unknown place"
}

// find returns the mount that holds path: the last of those with the longest mount point,
// since a later mount covers an earlier one. The lines are those of
// proc_pid_mountinfo(5): ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG]... - TYPE SOURCE OPTIONS.
func find(mountinfo, path string) (kind, mount string) {
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		f, rest := strings.Fields(before), strings.Fields(after)
		const point = 4
		if len(f) <= point || len(rest) == 0 {
			continue
		}
		at := unescape(f[point])
		if (path == at || at == "/" || strings.HasPrefix(path, at+"/")) && len(at) >= len(mount) {
			kind, mount = rest[0], at
		}
	}
	return kind, mount
}

// unescape undoes the octal escapes of blanks and backslashes, such as \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
