package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	restartPause = 5 * time.Second // the unit files' RestartSec
	stopBudget   = 90 * time.Second
)

// unit is a program that is kept running, as a systemd unit with
// Restart=on-failure is, or run once.
type unit struct {
	name    string
	argv    []string
	log     string
	restart bool

	mu       sync.Mutex
	cmd      *exec.Cmd
	restarts int
	stopping chan struct{}
	ended    chan struct{} // closed when it will not run again
	exit     exit
}

// exit is how a process ended.
type exit struct {
	code int // -1: by a signal
	at   time.Time
}

// spawner starts processes from one thread that never ends: a child with
// Pdeathsig is killed when the thread that made it ends.
var spawner = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func spawn(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	result := make(chan error)
	spawner() <- func() { result <- cmd.Start() }
	return <-result
}

// start runs the program. Call it once for each run; stop ends the run.
func (u *unit) start(t *testing.T) {
	t.Helper()
	u.stopping, u.ended = make(chan struct{}), make(chan struct{})
	if err := u.exec(); err != nil {
		t.Fatalf("start %s: %v", u.name, err)
	}
	go u.keep()
}

func (u *unit) exec() error {
	log, err := os.OpenFile(u.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(u.argv[0], u.argv[1:]...)
	cmd.Dir = filepath.Dir(u.log)
	cmd.Stdout, cmd.Stderr = log, log
	if err := spawn(cmd); err != nil {
		return err
	}
	u.mu.Lock()
	u.cmd = cmd
	u.mu.Unlock()
	return nil
}

// keep waits for the process and starts it again when it fails.
func (u *unit) keep() {
	defer close(u.ended)
	for {
		_ = u.cmd.Wait()
		u.exit = exit{u.cmd.ProcessState.ExitCode(), time.Now()}
		if u.exit.code == 0 || !u.restart {
			return
		}
		select {
		case <-u.stopping:
			return
		case <-time.After(restartPause):
		}
		u.mu.Lock()
		u.restarts++
		u.mu.Unlock()
		if u.exec() != nil {
			return
		}
		select {
		case <-u.stopping: // in the meantime
			u.signal(syscall.SIGTERM)
		default:
		}
	}
}

// terminate asks the process to end; wait waits for that.
func (u *unit) terminate() {
	close(u.stopping)
	u.signal(syscall.SIGTERM)
}

// signal does nothing to a process that has ended: Process.Signal knows.
func (u *unit) signal(s syscall.Signal) {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.cmd.Process.Signal(s)
}

// wait returns how the process ended, and kills it when it does not.
func (u *unit) wait(budget time.Duration) (exit, error) {
	select {
	case <-u.ended:
		return u.exit, nil
	case <-time.After(budget):
		u.signal(syscall.SIGKILL)
		<-u.ended
		return u.exit, fmt.Errorf("%s has not ended within %v of SIGTERM", u.name, budget)
	}
}

func (u *unit) running() bool {
	select {
	case <-u.ended:
		return false
	default:
		return true
	}
}

func (u *unit) pid() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.cmd.Process.Pid
}

func (u *unit) restarted() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.restarts
}

// tail is the end of the log.
func (u *unit) tail(lines int) string {
	data, err := os.ReadFile(u.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
