package verify

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
	"strings"
	"syscall"

	"filippo.io/age"

	"kthwd/appliance/advice"
	"kthwd/appliance/archive"
	"kthwd/appliance/backup/child"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/workdir"
)

// Checker makes the command of a child process that calls RunChecker.
type Checker func(ctx context.Context, file, dir string) *exec.Cmd

// Options is the input of Verify.
type Options struct {
	File       string
	Identities string // age identities, one a line
	Dir        string // where the database is restored; "" means beside the file, or else in the temporary directory
	Checker    Checker
	Report     func(step.Event)
}

// Verify restores the archive in a child process, and returns what that has found. Damage
// is an *archive.Damaged error.
func Verify(ctx context.Context, o Options) (v Verified, err error) {
	stage, err := o.stage()
	if err != nil {
		return v, err
	}
	defer stage.Remove()
	work := filepath.Join(stage.Path, "check")
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
		return v, fmt.Errorf("verify %s: the process that restored it ended early: %w", o.File, errors.Join(child.Ended(errWait, &said), errRead))
	case answer.Error != nil:
		return v, answer.Error.unpack(o.File)
	}
	return *answer.Verified, nil
}

// stage makes the directory of the verification.
func (o Options) stage() (*workdir.Dir, error) {
	if o.Dir != "" {
		return workdir.New(o.Dir)
	}
	s, err := workdir.New(filepath.Dir(o.File))
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		return workdir.New(os.TempDir())
	}
	return s, err
}

// message is a line from the child.
type message struct {
	Event    *step.Event `json:"event,omitempty"`
	Verified *Verified   `json:"verified,omitempty"`
	Error    *failure    `json:"error,omitempty"`
}

// failure is an error of the child.
type failure struct {
	Text, Hint, Step, Part string
	Encrypted              bool
}

func pack(err error) *failure {
	f := &failure{Text: err.Error(), Step: step.Of(err), Encrypted: errors.Is(err, archive.ErrEncrypted)}
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
		return &step.Error{Step: f.Step, Err: &archive.Damaged{Path: file, Part: f.Part, Err: err}}
	}
	if f.Hint != "" {
		err = advice.With(err, f.Hint)
	}
	return &step.Error{Step: f.Step, Err: err}
}

// sameText is an error of another process that is one of this one's.
type sameText struct {
	text string
	is   error
}

func (s *sameText) Error() string { return s.text }

func (s *sameText) Unwrap() error { return s.is }

// listen reads what the child says; the last message has the result.
func (o Options) listen(r io.Reader) (answer *message, err error) {
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
	child.StepBack()
	w := json.NewEncoder(out)
	data, err := io.ReadAll(io.LimitReader(in, archive.MaxFile))
	if err != nil {
		return err
	}
	c := Check{File: file, Dir: dir, Kthwd: kthwd, Log: log, Report: func(e step.Event) { _ = w.Encode(message{Event: &e}) }}
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
