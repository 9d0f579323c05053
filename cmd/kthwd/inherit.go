package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// inheritance is what this process gets from the process that started it. Variables
// that are meant for another process are ignored.
type inheritance struct {
	sockets     []*os.File // listening sockets from systemd (sd_listen_fds(3))
	predecessor int        // the process that a load balancer takes over from; 0 for none
}

// takeOverFrom is the variable that upgrade sets for the new process.
const takeOverFrom = "KTHWD_TAKE_OVER_FROM"

// takeInheritance must be called before anything opens a file.
func takeInheritance() (in inheritance) {
	if pid, err := strconv.Atoi(os.Getenv(takeOverFrom)); err == nil && pid == os.Getppid() {
		in.predecessor = pid
	}
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{takeOverFrom, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if pid != os.Getpid() {
		return in
	}
	const first = 3
	for i := range max(0, min(count, 1024)) {
		name := "socket"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		syscall.CloseOnExec(first + i)
		in.sockets = append(in.sockets, os.NewFile(uintptr(first+i), name))
	}
	return in
}
