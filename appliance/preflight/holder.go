package preflight

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

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
		return fmt.Sprintf("%s (process %s%s)", text.Line(string(name)), pid, started(pid))
	}
	return "a process of the user " + sockets[0].User()
}

// ticks is the number of the kernel's ticks in a second, as /proc counts time for programs.
const ticks = 100

// started says when a process began; it is empty where /proc does not tell.
func started(pid string) string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // after the name, which may hold anything
	const begin = 22 - 3                                                      // proc_pid_stat(5); the first two fields are cut off, and 1 is the first
	machine, err := os.ReadFile("/proc/stat")
	_, rest, ok := strings.Cut(string(machine), "\nbtime ")
	if err != nil || !ok || len(fields) <= begin {
		return ""
	}
	booted, _, _ := strings.Cut(rest, "\n")
	seconds, errBoot := strconv.ParseInt(booted, 10, 64)
	after, errStart := strconv.ParseInt(fields[begin], 10, 64)
	if errBoot != nil || errStart != nil {
		return ""
	}
	return ", started " + time.Unix(seconds+after/ticks, 0).Format("2006-01-02 15:04:05")
}
