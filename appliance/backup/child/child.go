// Package child has what the child processes of a backup need: a parent whose thread does not end
// before them, and a priority below kthwd's.
package child

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
)

// Ended is the reason of the end of a child that gave no answer: its last words, or how it ended.
func Ended(err error, said *bytes.Buffer) error {
	lines := strings.Split(strings.TrimSpace(said.String()), "\n")
	for _, line := range lines {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.Contains(line, "error:") {
			return errors.New(line)
		}
	}
	if err == nil {
		return errors.New(lines[len(lines)-1])
	}
	return advice.With(err, "if it was killed, look for the kernel's line of an out-of-memory kill: dmesg | tail")
}

// StepBack lets other processes go first: on the processor, on the disk, and when memory
// runs out. The packaged unit's filter of system calls refuses a lower priority: then this
// process takes one processor, and leaves the others to kthwd.
func StepBack() {
	const (
		whoProcess = 1       // IOPRIO_WHO_PROCESS
		idle       = 3 << 13 // IOPRIO_CLASS_IDLE
	)
	threads, _ := os.ReadDir("/proc/self/task") // both priorities are a thread's, and new ones inherit them
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, 10); err != nil && !errors.Is(err, unix.ESRCH) {
			runtime.GOMAXPROCS(1)
		}
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(id), idle)
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
}

// Run keeps the thread that starts the child, with which Pdeathsig would end it.
func Run(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}
