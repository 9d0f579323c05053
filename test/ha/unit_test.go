package ha

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
	"kthwd/test/lbtest"
)

// restartPause is between the end of a process and the next one, as a systemd
// unit with Restart=always has it by RestartSec.
const restartPause = time.Second

// unit runs a program, and again whenever it ends, as systemd does.
type unit struct {
	name string
	argv []string
	at   int // of the program in argv
	env  []string
	host *lbtest.Namespace // with a host name of its own; nil: this process's
	log  *kthwtest.Log

	output  io.Writer // log, and a file where one is wanted
	mu      sync.Mutex
	process *os.Process // nil while none runs
	off     bool        // as if the machine was
	starts  int
	exits   []exit
	wake    chan struct{} // holds one when something has changed
	ended   bool
	done    chan struct{}
}

// exit is the end of a process.
type exit struct {
	PID    int
	Code   int // -1 by a signal
	At     time.Time
	Asked  bool // by the test
	LogEnd int  // length of the log
}

func newUnit(t testing.TB, name string, host *lbtest.Namespace, argv ...string) *unit {
	t.Helper()
	u := &unit{name: name, argv: argv, host: host, log: &kthwtest.Log{}, off: true, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if host != nil {
		u.argv, u.at = append([]string{lbtest.Self(t), name}, argv...), 2
		u.env = []string{lbtest.HelperEnv("host")}
	}
	u.output = u.log
	if dir := os.Getenv("KTHWD_HA_LOGS"); dir != "" {
		f, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		u.output = io.MultiWriter(u.log, f)
	}
	go u.run()
	t.Cleanup(func() { u.cleanup(t) })
	return u
}

// run is the life of the unit.
func (u *unit) run() {
	defer close(u.done)
	for {
		u.mu.Lock()
		off, ended := u.off, u.ended
		u.mu.Unlock()
		switch {
		case ended:
			return
		case off:
			<-u.wake
			continue
		}
		u.once()
		select {
		case <-time.After(restartPause):
		case <-u.wake:
		}
	}
}

// once is one process, from its start to its end.
func (u *unit) once() {
	u.mu.Lock()
	cmd := exec.Command(u.argv[0], u.argv[1:]...)
	u.mu.Unlock()
	cmd.Env = append(os.Environ(), u.env...)
	cmd.Stdout, cmd.Stderr = u.output, u.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the test
	if u.host != nil {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUTS
	}
	var err error
	u.mu.Lock()
	if u.ended || u.off {
		u.mu.Unlock()
		return
	}
	u.host.Do(func() { err = cmd.Start() })
	if err != nil {
		u.mu.Unlock()
		fmt.Fprintf(u.log, "start %s: %v\n", u.name, err)
		return
	}
	u.process = cmd.Process
	u.starts++
	u.mu.Unlock()
	_ = cmd.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.process = nil
	u.exits = append(u.exits, exit{PID: cmd.Process.Pid, Code: cmd.ProcessState.ExitCode(), At: time.Now(), LogEnd: len(u.log.String())})
}

func (u *unit) set(change func()) {
	u.mu.Lock()
	change()
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// runs is the program from the next start on.
func (u *unit) runs(program string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.argv[u.at] = program
}

// on starts the program, and keeps it running.
func (u *unit) on() { u.set(func() { u.off = false }) }

// kill is kill -9. The program is started again, unless the unit is switched off.
func (u *unit) kill() { u.signal(syscall.SIGKILL) }

// powerOff kills a unit with SIGKILL; it stays down until on.
func (u *unit) powerOff() {
	u.set(func() { u.off = true })
	u.kill()
}

func (u *unit) signal(s syscall.Signal) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.process != nil {
		_ = u.process.Signal(s)
	}
}

// pid is the process number; 0 while none runs.
func (u *unit) pid() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.process == nil {
		return 0
	}
	return u.process.Pid
}

// count is how many processes there were.
func (u *unit) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.starts
}

// lastExit is the end of the last process that has ended.
func (u *unit) lastExit() exit {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.exits) == 0 {
		return exit{}
	}
	return u.exits[len(u.exits)-1]
}

func (u *unit) cleanup(t testing.TB) {
	u.set(func() { u.ended, u.off = true, true })
	u.kill() // how it stops is the business of rows; without a quorum it takes long
	<-u.done
	if t.Failed() {
		t.Logf("log of %s:\n%s", u.name, u.log.Tail(150))
	}
}
