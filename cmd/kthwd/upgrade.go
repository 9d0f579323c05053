package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// upgrade is SIGUSR2: it starts the binary that is now where this one was. The
// new process takes over through the upgrade socket by itself; this one then
// ends. When the new one ends before that, nothing has happened.
func (b *balancer) upgrade() {
	if !b.alone {
		b.log.Warn("upgrade refused: it would end the controller in this process; restart kthwd instead")
		return
	}
	if !b.upgrading.CompareAndSwap(false, true) {
		b.log.Warn("upgrade refused: one is under way")
		return
	}
	cmd, err := b.app.successor()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.upgrading.Store(false)
		b.log.Error("upgrade failed, this process goes on", "err", err)
		return
	}
	b.log.Info("upgrade: a new process was started", "path", cmd.Path, "process", cmd.Process.Pid)
	go func() {
		err := cmd.Wait()
		if b.handedOver.Load() {
			return
		}
		b.app.notify.mainPID(os.Getpid()) // what successor said holds no longer
		b.upgrading.Store(false)
		if err == nil {
			err = fmt.Errorf("exit status 0")
		}
		b.log.Error("upgrade failed: the new process ended before it took over; this one goes on", "process", cmd.Process.Pid, "err", err)
	}()
}

// successor is called when a new process, whoever started it, is about to take over.
// With this process' own number it says that this was broken off.
func (b *balancer) successor(pid int) {
	if b.alone {
		b.app.notify.mainPID(pid)
	}
	if pid != os.Getpid() {
		b.log.Info("a new process takes over", "process", pid)
	}
}

// successor is the command that starts kthwd anew: its arguments, its
// environment, the way to systemd, and what it is to do.
func (a *app) successor() (*exec.Cmd, error) {
	path := os.Args[0] // as the service manager named it: a link there may lead to a new version
	if !filepath.IsAbs(path) {
		var err error
		if path, err = os.Executable(); err != nil { // without " (deleted)"
			return nil, err
		}
	}
	cmd := exec.Command(path, a.args...)
	cmd.Env = append(os.Environ(), a.notify.environment()...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", takeOverFrom, os.Getpid()))
	cmd.Stdout, cmd.Stderr = a.out, a.err
	return cmd, nil
}
