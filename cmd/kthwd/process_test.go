package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"kthwd/appliance/status"
)

// process is a program in the background of a script.
type process struct {
	name string
	cmd  *exec.Cmd     // nil if adopted
	pid  *os.Process   // set if adopted
	gone chan struct{} // closed when the process has ended and err is set
	err  error
}

type processesKey struct{}

func processes(ts *testscript.TestScript) map[string]*process {
	return ts.Value(processesKey{}).(map[string]*process)
}

func background(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: background NAME PROGRAM [ARG...]")
	}
	p := &process{name: args[0], cmd: command(context.Background(), ts, args[1:]), gone: make(chan struct{})}
	log, err := os.OpenFile(ts.MkAbs(p.name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	ts.Check(err)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	ts.Check(p.cmd.Start())
	log.Close() // the process has its own
	go func() {
		p.err = p.cmd.Wait()
		close(p.gone)
	}()
	processes(ts)[p.name] = p
	ts.Defer(func() {
		p.cmd.Process.Kill()
		<-p.gone
	})
}

func (p *process) process() *os.Process {
	if p.cmd == nil {
		return p.pid
	}
	return p.cmd.Process
}

// adopt makes a process that another one has started a process of the script. Both
// write to the same log.
func adopt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: adopt NAME ADDRESS")
	}
	r, err := status.Client{Addr: args[1]}.Status(context.Background())
	ts.Check(err)
	p := &process{name: args[0], gone: make(chan struct{})}
	p.pid, err = os.FindProcess(r.PID)
	ts.Check(err)
	go func() { // it is not a child of this process: there is no event to wait for
		for p.pid.Signal(syscall.Signal(0)) == nil && !isZombie(r.PID) {
			time.Sleep(20 * time.Millisecond)
		}
		close(p.gone)
	}()
	processes(ts)[p.name] = p
	ts.Defer(func() {
		p.pid.Kill()
		<-p.gone
	})
}

// systemd receives the notifications of processes.
func systemd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: systemd NAME")
	}
	path := ts.MkAbs(args[0] + ".sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	log, err := os.Create(ts.MkAbs(args[0] + ".log"))
	ts.Check(err)
	ts.Setenv("NOTIFY_SOCKET", path)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			fmt.Fprintln(log, strings.ReplaceAll(string(b[:n]), "\n", " "))
		}
	}()
	ts.Defer(func() {
		conn.Close()
		<-done
		log.Close()
	})
}

// isZombie reports whether a process has ended, but its new parent has not collected it.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return err != nil || strings.HasPrefix(after, "Z")
}

func (p *process) hasEnded() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

func (p *process) log(ts *testscript.TestScript) string { return ts.ReadFile(p.name + ".log") }

func (p *process) exitCode() int {
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

func find(ts *testscript.TestScript, name string) *process {
	p, ok := processes(ts)[name]
	if !ok {
		ts.Fatalf("no background process %s", name)
	}
	return p
}

func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2}
	if neg || len(args) != 2 || signals[args[1]] == 0 {
		ts.Fatalf("usage: signal NAME TERM|INT|HUP|KILL|USR1|USR2")
	}
	ts.Check(find(ts, args[0]).process().Signal(signals[args[1]]))
}

func ended(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: ended NAME CODE TIMEOUT")
	}
	p := find(ts, args[0])
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	timeout, err := patience(args[2])
	ts.Check(err)
	select {
	case <-p.gone:
	case <-time.After(timeout):
		ts.Fatalf("%s: still there after %s\n%s", p.name, timeout, p.log(ts))
	}
	delete(processes(ts), p.name)
	if got := p.exitCode(); got != want {
		ts.Fatalf("%s: got exit code %d, want %d\n%s", p.name, got, want, p.log(ts))
	}
	if strings.Contains(p.log(ts), "goroutine 1 [") {
		ts.Fatalf("%s: a stack trace\n%s", p.name, p.log(ts))
	}
}
