package preflight

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"kthwd/appliance/listening"
	"kthwd/appliance/text"
)

// Holder names the process that listens on a TCP port of this machine, at whatever address,
// or the user of it when /proc does not show the process, and "" when nothing listens.
func Holder(port int) string {
	sockets, _ := listening.On(port)
	if len(sockets) == 0 {
		return ""
	}
	links := map[string]bool{}
	for _, s := range sockets {
		links["socket:["+strconv.FormatUint(s.Inode, 10)+"]"] = true
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, file := range files {
		target, err := os.Readlink(file)
		if err != nil || !links[target] {
			continue
		}
		pid := strings.Split(file, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue // it has ended meanwhile
		}
		return fmt.Sprintf("%s (process %s)", text.Line(string(name)), pid)
	}
	return "a process of the user " + sockets[0].User()
}
