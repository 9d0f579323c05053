package lbtest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Nobody is the unprivileged user.
const Nobody = 65534

// Command describes a process to start.
type Command struct {
	Name      string
	Argv      []string
	Env       []string
	Namespace *Namespace
	Nobody    bool           // run as the unprivileged user; needs root
	Piped     bool           // the test uses Stdin and Lines
	Stop      syscall.Signal // signal that ends it; 0 means SIGKILL
}

// Process is a running process. It ends with the test.
type Process struct {
	Command
	PID   int
	Log   *Log
	Stdin io.WriteCloser
	Lines *bufio.Scanner // of standard output

	cmd    *exec.Cmd
	exited chan struct{}
}

// Start starts a process.
func Start(t testing.TB, c Command) *Process {
	t.Helper()
	p := &Process{Command: c, Log: &Log{}, exited: make(chan struct{})}
	p.cmd = exec.Command(c.Argv[0], c.Argv[1:]...)
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.Stderr = p.Log
	if c.Nobody {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: Nobody, Gid: Nobody}}
	}
	if c.Piped {
		in, err := p.cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		p.Stdin, p.Lines = in, bufio.NewScanner(out)
		p.Lines.Buffer(nil, 16<<20)
	} else {
		p.cmd.Stdout = p.Log
	}
	var err error
	c.Namespace.Do(func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatalf("start %s: %v", c.Name, err)
	}
	p.PID = p.cmd.Process.Pid
	go func() {
		state, err := p.cmd.Process.Wait() // not cmd.Wait, which closes the pipe of Lines
		if err == nil {
			p.cmd.ProcessState = state
		}
		close(p.exited)
	}()
	t.Cleanup(func() { p.cleanup(t) })
	return p
}

// StartHelper starts a helper of this binary with Stdin and Lines.
func StartHelper(t testing.TB, n *Namespace, name string, args ...string) *Process {
	t.Helper()
	return Start(t, Command{
		Name: name, Argv: append([]string{Self(t)}, args...), Env: []string{helperEnv + "=" + name},
		Namespace: n, Piped: true,
	})
}

// HelperEnv returns the environment that makes a copy of this binary run a helper.
func HelperEnv(name string) string { return helperEnv + "=" + name }

// Line returns the next line of standard output.
func (p *Process) Line(t testing.TB) string {
	t.Helper()
	if !p.Lines.Scan() {
		<-p.exited
		t.Fatalf("%s ended (%v): %s", p.Name, p.cmd.ProcessState, p.Log.Tail(20))
	}
	return p.Lines.Text()
}

// End ends the process and its descendants, and waits for their end.
func (p *Process) End() {
	tree := p.Tree()
	if p.Stop != 0 && p.Stop != syscall.SIGKILL && p.Running() {
		_ = syscall.Kill(p.PID, p.Stop)
		select {
		case <-p.exited:
		case <-time.After(3 * time.Second):
		}
	}
	for _, pid := range append(tree, p.Tree()...) {
		if pid != p.PID || p.Running() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	<-p.exited
	if p.Stdin != nil {
		p.Stdin.Close()
	}
}

func (p *Process) cleanup(t testing.TB) {
	p.End()
	if t.Failed() && p.Log.Tail(1) != "" {
		t.Logf("log of %s:\n%s", p.Name, p.Log.Tail(60))
	}
}

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Exited returns a channel that is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// ExitCode returns the exit code of an ended process; -1 after a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Signal sends a signal to this process only.
func (p *Process) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%v to %s: %v", s, p.Name, err)
	}
}

// Tree returns the process numbers of the process and its descendants.
func (p *Process) Tree() []int { return Tree(p.PID) }

// Tree returns the process numbers of a process and its descendants.
func Tree(pid int) []int {
	parents := map[int]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if child, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			parents[child] = int(procStat(child, 4))
		}
	}
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		for child, parent := range parents {
			if parent == tree[i] && !slices.Contains(tree, child) {
				tree = append(tree, child)
			}
		}
	}
	return tree
}

// procStat adds up fields of /proc/PID/stat by their numbers in proc(5); 0 for an ended
// process.
func procStat(pid int, numbers ...int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is the name in brackets, which may contain spaces.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	sum := 0.0
	for _, n := range numbers {
		value, _ := strconv.ParseFloat(fields[n-3], 64)
		sum += value
	}
	return sum
}

// CPU returns the user and system time used by processes, in steps of 10 ms.
func CPU(pids ...int) time.Duration {
	ticks := 0.0
	for _, pid := range pids {
		ticks += procStat(pid, 14, 15)
	}
	return time.Duration(ticks * float64(10*time.Millisecond))
}

// MachineCPU returns the time in which the processors of the machine were not idle.
func MachineCPU() time.Duration {
	data, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(data), "\n")
	ticks := 0.0
	for i, field := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // name, idle, iowait, and guests, which user includes already
			continue
		}
		value, _ := strconv.ParseFloat(field, 64)
		ticks += value
	}
	return time.Duration(ticks * float64(10*time.Millisecond))
}

// AnonymousMemory returns the RssAnon of processes, in bytes.
func AnonymousMemory(pids ...int) float64 {
	sum := 0.0
	for _, pid := range pids {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(data)) {
			var kib float64
			if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kib); err == nil {
				sum += kib * 1024
			}
		}
	}
	return sum
}

// Descriptors counts the open descriptors of processes, and those of them that are an
// end of a pipe.
func Descriptors(pids ...int) (all, pipes int) {
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, _ := os.ReadDir(dir)
		for _, entry := range entries {
			target, err := os.Readlink(filepath.Join(dir, entry.Name()))
			if err != nil {
				continue
			}
			all++
			if strings.HasPrefix(target, "pipe:") {
				pipes++
			}
		}
	}
	return all, pipes
}

// Log keeps the end of a process's output.
type Log struct {
	mu   sync.Mutex
	data []byte
}

const logSize = 256 << 10

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, p...)
	if len(l.data) > 2*logSize {
		l.data = slices.Clone(l.data[len(l.data)-logSize:])
	}
	return len(p), nil
}

// Tail returns the last lines.
func (l *Log) Tail(lines int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := strings.Split(strings.TrimRight(string(l.data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// String returns all kept output.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.data)
}
