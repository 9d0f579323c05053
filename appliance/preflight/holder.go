package preflight

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"kthwd/appliance/text"
)

// stateListen is TCP_LISTEN in /proc/net/tcp.
const stateListen = "0A"

// Holder names the process that listens on a TCP port of this machine, at whatever address,
// or returns "a process of another user" when /proc does not show it, and "" when nothing
// listens.
func Holder(port int) string {
	inodes := listening(port)
	if len(inodes) == 0 {
		return ""
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inodes[strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")] {
			continue
		}
		pid := strings.Split(link, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue // it has ended meanwhile
		}
		return fmt.Sprintf("%s (process %s)", text.Line(string(name)), pid)
	}
	return "a process of another user"
}

// listening returns the inodes of the sockets that listen on port.
func listening(port int) map[string]bool {
	inodes := map[string]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // without IPv6 there is only one
		}
		for line := range strings.Lines(string(data)) {
			const local, state, inode = 1, 3, 9
			fields := strings.Fields(line)
			if len(fields) <= inode || fields[state] != stateListen {
				continue
			}
			_, hex, _ := strings.Cut(fields[local], ":")
			if n, err := strconv.ParseUint(hex, 16, 16); err == nil && int(n) == port {
				inodes[fields[inode]] = true
			}
		}
	}
	return inodes
}
