package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// upgrade handles SIGUSR2: it starts the binary that is now at this one's path. The
// new process takes over through the upgrade socket, and this one then ends. If the
// new process ends before it has taken over, this one continues.
func (b *balancer) upgrade() {
	if !b.alone {
		b.log.Warn("upgrade refused: it would end the controller in this process; restart kthwd instead")
		return
	}
	if !b.upgrading.CompareAndSwap(false, true) {
		b.log.Warn("upgrade refused: one is under way")
		return
	}
	cmd, err := b.app.successorCommand()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.upgrading.Store(false)
		b.log.Error("upgrade failed, this process continues", "err", err)
		return
	}
	b.log.Info("upgrade: a new process was started", "path", cmd.Path, "process", cmd.Process.Pid)
	go func() {
		err := cmd.Wait()
		if b.handedOver.Load() {
			return
		}
		b.app.notify.mainPID(os.Getpid()) // takes back the report of successor
		b.upgrading.Store(false)
		if err == nil {
			err = fmt.Errorf("exit status 0")
		}
		b.log.Error("upgrade failed: the new process ended before it took over; this one continues", "process", cmd.Process.Pid, "err", err)
	}()
}

// successor is called when a new process, which anyone may have started, is about to
// take over. The number of this process means that the takeover was abandoned.
func (b *balancer) successor(pid int) {
	if b.alone {
		b.app.notify.mainPID(pid)
	}
	if pid != os.Getpid() {
		b.record.Release() // the new process records its own run there
	} else if b.record != nil {
		b.record.Keep()
	}
	if pid != os.Getpid() {
		b.log.Info("a new process takes over", "process", pid)
	}
}

// successorCommand starts kthwd again, with the same arguments and environment, the
// socket of systemd, and the process to take over from.
func (a *app) successorCommand() (*exec.Cmd, error) {
	path := os.Args[0] // as the service manager wrote it: a link there may point to a new version
	if !filepath.IsAbs(path) {
		var err error
		if path, err = os.Executable(); err != nil { // without " (deleted)"
			return nil, err
		}
	}
	cmd := exec.Command(path, a.Args...)
	cmd.Env = append(os.Environ(), a.notify.environment()...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", takeOverFrom, os.Getpid()))
	cmd.Stdout, cmd.Stderr = a.Out, a.Err
	return cmd, nil
}
