package scratch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The exit codes of a shell for a command that it cannot run, and those of one that a signal
// has ended are Signalled and its number.
const (
	NotExecutable = 126
	NotFound      = 127
	Signalled     = 128
)

// Unrunnable is a command that cannot be run.
type Unrunnable struct {
	Name string
	Err  error

	path string // of the file that is there
}

func (u *Unrunnable) Error() string { return fmt.Sprintf("%s: %v", u.Name, u.Err) }

// Unwrap gives errors.Is and errors.As the reason.
func (u *Unrunnable) Unwrap() error { return u.Err }

// Hint implements advice: what to do about it.
func (u *Unrunnable) Hint() string {
	_, searched := errors.AsType[notInPath](u.Err)
	switch {
	case errors.Is(u.Err, fs.ErrPermission):
		return "chmod +x makes a file executable"
	case errors.Is(u.Err, syscall.ENOEXEC):
		return "the first line of a script names its shell: #!/bin/sh"
	case errors.Is(u.Err, fs.ErrNotExist) && u.path != "":
		return "the file is there, and the shell of its first line, or the loader that it needs, is not"
	case searched && executable(u.Name) == nil:
		return "a command of this directory is named with it: ./" + u.Name
	}
	return ""
}

// Code is the exit code of a shell.
func (u *Unrunnable) Code() int {
	if errors.Is(u.Err, fs.ErrNotExist) {
		return NotFound
	}
	return NotExecutable
}

// Find returns the path of a command as a shell finds it in the directories of path, which
// has the form of PATH. The error is an Unrunnable.
func Find(command, path string) (string, error) {
	if strings.Contains(command, "/") {
		if err := executable(command); err != nil {
			return "", &Unrunnable{Name: command, Err: err}
		}
		return command, nil
	}
	var found error = fs.ErrNotExist
	for _, dir := range filepath.SplitList(path) {
		at := filepath.Join(dir, command)
		err := executable(at)
		if err == nil {
			return filepath.Abs(at)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) && command != "" {
			found = err
		}
	}
	if errors.Is(found, fs.ErrNotExist) {
		found = notInPath{}
	}
	return "", &Unrunnable{Name: command, Err: found}
}

// notInPath is fs.ErrNotExist in the words of a shell.
type notInPath struct{}

func (notInPath) Error() string        { return "command not found" }
func (notInPath) Is(target error) bool { return target == fs.ErrNotExist }

func executable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return errors.Unwrap(err)
	case info.IsDir():
		return errors.New("is a directory")
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return err
	}
	return nil
}

// Command is a command that a run exists for.
type Command struct {
	Path   string   // from Find
	Args   []string // with the name first
	Env    []string
	Stdin  *os.File
	Stdout io.Writer
	Stderr io.Writer
}

// Run runs the command, passes signals on to it, and returns its exit code: 128 and the
// number of the signal if one has ended it. When gone is closed, the command gets SIGTERM,
// too; so it does from the kernel when this process is killed. It returns an Unrunnable if
// the kernel does not run it.
//
// Signals from the keyboard reach the command without help, if it shares the terminal
// with this process, and are not passed on a second time.
func (c Command) Run(signals <-chan os.Signal, gone <-chan struct{}) (code int, err error) {
	// The kernel sends the signal when the thread ends that has started the command.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := &exec.Cmd{
		Path: c.Path, Args: c.Args, Env: c.Env, Stdout: c.Stdout, Stderr: c.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM},
	}
	if c.Stdin != nil {
		cmd.Stdin = c.Stdin
	}
	if err := cmd.Start(); err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return 0, &Unrunnable{Name: c.Args[0], Err: err, path: c.Path}
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its state says more
		close(done)
	}()
	for {
		select {
		case s := <-signals:
			if !(keyboard(s) && foreground()) {
				_ = cmd.Process.Signal(s) // it may have ended
			}
		case <-gone:
			gone = nil
			_ = cmd.Process.Signal(syscall.SIGTERM)
		case <-done:
			return exitCode(cmd.ProcessState), nil
		}
	}
}

func exitCode(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return Signalled + int(w.Signal())
	}
	return s.ExitCode()
}

func keyboard(s os.Signal) bool { return s == syscall.SIGINT || s == syscall.SIGQUIT }

// foreground reports whether the terminal sends what is typed to the group of this process,
// which its command belongs to.
func foreground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == syscall.Getpgrp()
}
