package backup

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
)

// Checker makes the command of a child process that calls RunChecker.
type Checker func(ctx context.Context, file, dir string) *exec.Cmd

// VerifyOptions is the input of Verify.
type VerifyOptions struct {
	File       string
	Identities string // age identities, one a line
	Dir        string // where the database is restored; "" means beside the file, or else in the temporary directory
	Checker    Checker
	Report     func(Event)
}

// Verify restores the archive in a child process, and returns what that has found. Damage
// is an *archive.Damaged error.
func Verify(ctx context.Context, o VerifyOptions) (v Verified, err error) {
	stage, err := o.stage()
	if err != nil {
		return v, err
	}
	defer stage.remove()
	work := filepath.Join(stage.dir, "check")
	if err := os.Mkdir(work, 0o700); err != nil {
		return v, err
	}
	runtime.LockOSThread() // the child ends with the thread that starts it
	defer runtime.UnlockOSThread()
	cmd := o.Checker(ctx, o.File, work)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdin = strings.NewReader(o.Identities)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return v, fmt.Errorf("verify %s: %w", o.File, err)
	}
	answer, errRead := o.listen(out)
	errWait := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return v, ctx.Err()
	case answer == nil:
		return v, fmt.Errorf("verify %s: the process that restored it ended early: %w", o.File, errors.Join(ended(errWait, &said), errRead))
	case answer.Error != nil:
		return v, answer.Error.unpack(o.File)
	}
	return *answer.Verified, nil
}

// stage makes the directory of the verification.
func (o VerifyOptions) stage() (*stage, error) {
	if o.Dir != "" {
		return newStage(o.Dir)
	}
	s, err := newStage(filepath.Dir(o.File))
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return newStage(os.TempDir())
	}
	return s, err
}

// ended is the reason of the end of a child that gave no answer: its last words, or how it ended.
func ended(err error, said *bytes.Buffer) error {
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

// message is a line from the child.
type message struct {
	Event    *Event    `json:"event,omitempty"`
	Verified *Verified `json:"verified,omitempty"`
	Error    *failure  `json:"error,omitempty"`
}

// failure is an error of the child.
type failure struct {
	Text, Hint, Step, Part string
	Encrypted              bool
}

func pack(err error) *failure {
	f := &failure{Text: err.Error(), Step: StepOf(err), Encrypted: errors.Is(err, archive.ErrEncrypted)}
	f.Hint, _ = advice.Of(err)
	if d, ok := errors.AsType[*archive.Damaged](err); ok {
		f.Part, f.Text = d.Part, d.Err.Error()
	}
	return f
}

func (f *failure) unpack(file string) error {
	err := errors.New(f.Text)
	switch {
	case f.Encrypted:
		err = &sameText{f.Text, archive.ErrEncrypted}
	case f.Part != "":
		return &stepError{f.Step, &archive.Damaged{Path: file, Part: f.Part, Err: err}}
	}
	if f.Hint != "" {
		err = advice.With(err, f.Hint)
	}
	return &stepError{f.Step, err}
}

// sameText is an error of another process that is one of this one's.
type sameText struct {
	text string
	is   error
}

func (s *sameText) Error() string { return s.text }

func (s *sameText) Unwrap() error { return s.is }

// listen reads what the child says; the last message has the result.
func (o VerifyOptions) listen(r io.Reader) (answer *message, err error) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return answer, nil
		}
		if err != nil {
			return answer, err
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return answer, fmt.Errorf("%.80q: %w", line, err)
		}
		switch {
		case m.Event == nil:
			answer = &m
		case o.Report != nil:
			o.Report(*m.Event)
		}
	}
}

// RunChecker is the child's part of Verify: it verifies the archive, and writes what it finds
// to out. The identities come from in. It lowers its own priority.
func RunChecker(ctx context.Context, file, dir, kthwd string, in io.Reader, out io.Writer, log *slog.Logger) error {
	StepBack()
	w := json.NewEncoder(out)
	data, err := io.ReadAll(io.LimitReader(in, archive.MaxFile))
	if err != nil {
		return err
	}
	c := Check{File: file, Dir: dir, Kthwd: kthwd, Log: log, Report: func(e Event) { _ = w.Encode(message{Event: &e}) }}
	if len(bytes.TrimSpace(data)) > 0 {
		if c.Identities, err = age.ParseIdentities(bytes.NewReader(data)); err != nil {
			return w.Encode(message{Error: pack(errors.New("the identity cannot be read"))})
		}
	}
	v, err := c.Run(ctx)
	if err != nil {
		return w.Encode(message{Error: pack(err)})
	}
	return w.Encode(message{Verified: &v})
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
