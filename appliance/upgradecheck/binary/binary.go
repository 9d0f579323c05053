// Package binary looks at another kthwd than the one that runs, and asks it what it is: for which
// versions it was built, which objects it can read from etcd, and whether it accepts a
// configuration.
//
// Nothing is executed that is no kthwd for this machine, and nothing as root that another user could
// have written.
package binary

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/paths"
	"kthwd/appliance/text"
)

const (
	childTime   = time.Minute // for one answer of the new binary, on a machine that is busy
	childOutput = 8 << 20     // bytes of it that are read
)

// name is the advice where a file is not what was meant.
const name = "name the new kthwd with --binary"

// FactsVerb is the hidden verb with which a binary tells its Facts.
var FactsVerb = []string{"upgrade", "facts"}

// Facts are what a binary says of itself.
type Facts struct {
	Kinds map[string][]string `json:"kinds"` // of objects that it can read from etcd, by API version
}

// Binary is another kthwd.
type Binary struct {
	Path       string              `json:"path"`
	Kthwd      string              `json:"kthwd"`
	Kubernetes string              `json:"kubernetes"`
	Etcd       string              `json:"etcd"`
	Kinds      map[string][]string `json:"-"` // see Facts; nil from a kthwd that cannot tell
	run        string              // the path that is executed
}

// Record is the part of a member record that depends on the binary.
func (b Binary) Record() etcdfiles.Record {
	return etcdfiles.Record{Kthwd: b.Kthwd, Kubernetes: b.Kubernetes, Etcd: b.Etcd}
}

// CanRead reports whether the binary can read an object of that kind.
func (b Binary) CanRead(version, kind string) bool { return slices.Contains(b.Kinds[version], kind) }

// Inspect looks at a kthwd and asks it for its versions and facts; path "" means the binary of
// this process. Nothing is executed that is no kthwd for this machine, and nothing as root
// that another user could have written. It runs in a child process without an environment,
// for a limited time.
func Inspect(ctx context.Context, path string) (Binary, error) {
	b := Binary{Path: path, run: "/proc/self/exe"}
	if path == "" {
		own, err := os.Executable()
		if err != nil {
			return b, err
		}
		b.Path = own
	} else if err := b.examine(os.Geteuid() == 0); err != nil {
		return b, err
	}
	said, err := b.ask(ctx, "version", "-o", "json")
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(said, &b); err != nil || b.Kthwd == "" {
		return b, advice.With(fmt.Errorf("%s is no kthwd: its answer to \"version -o json\" is not that of one", b.Path), name)
	}
	if _, known := etcdfiles.Steps(b.Kubernetes, b.Etcd); !known {
		return b, advice.With(fmt.Errorf("%s was built without versions (Kubernetes %s, etcd %s), and refuses to serve", b.Path, b.Kubernetes, b.Etcd), "build it with make build")
	}
	var f Facts
	if said, err := b.ask(ctx, FactsVerb...); err == nil && json.Unmarshal(said, &f) == nil {
		b.Kinds = f.Kinds
	}
	return b, nil
}

// examine refuses a file that is no kthwd for this machine, without executing it. asRoot also
// refuses one that a user other than root could have written.
func (b *Binary) examine(asRoot bool) error {
	info, err := os.Stat(b.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return advice.With(fmt.Errorf("%s does not exist", b.Path), name)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return advice.With(fmt.Errorf("%s is no file", b.Path), name)
	}
	if err := checkProgram(b.Path); err != nil {
		return err
	}
	if b.run, err = filepath.EvalSymlinks(b.Path); err == nil {
		b.run, err = filepath.Abs(b.run)
	}
	if err != nil || !asRoot {
		return err
	}
	return onlyRoots(b.run)
}

// machines are the architectures for which kthwd is built.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkProgram refuses a file that is no kthwd of this machine's architecture. Only a program
// of this machine is told that it is not executable: chmod makes no program of a text.
func checkProgram(path string) error {
	f, err := elf.Open(path)
	var form *elf.FormatError
	switch {
	case errors.As(err, &form) || errors.Is(err, io.EOF):
		return advice.With(fmt.Errorf("%s is no kthwd: it is no program for Linux", path), name)
	case err != nil:
		return err
	}
	defer f.Close()
	if want, known := machines[runtime.GOARCH]; known && f.Machine != want {
		return advice.With(fmt.Errorf("%s is for another architecture, %s; this machine is %s", path, strings.TrimPrefix(f.Machine.String(), "EM_"), runtime.GOARCH), "get the kthwd for "+runtime.GOARCH)
	}
	if unix.Access(path, unix.X_OK) != nil {
		return advice.With(fmt.Errorf("%s is not executable", path), "chmod +x "+text.ShellWord(path))
	}
	built, err := buildinfo.ReadFile(path)
	if err != nil || !strings.HasSuffix(strings.TrimSuffix(built.Path, ".test"), "/cmd/kthwd") {
		return advice.With(fmt.Errorf("%s is no kthwd: it is another program", path), name)
	}
	return nil
}

// onlyRoots refuses a path that another user than root could have changed.
func onlyRoots(path string) error {
	at, err := paths.Written(path)
	if err != nil || at == "" {
		return err
	}
	return advice.With(fmt.Errorf("%s is not executed as root: users other than root can write %s", path, at),
		"install it, or copy it to a directory of root's: install -o root -m 0755 "+text.ShellWord(path)+" /usr/local/sbin/kthwd-new")
}

// ask runs a verb that must succeed, and returns its standard output.
func (b Binary) ask(ctx context.Context, args ...string) ([]byte, error) {
	out, said, err := b.call(ctx, "/", args...)
	if err == nil {
		return out, nil
	}
	if lines := messages(said, "error: "); len(lines) > 0 {
		err = errors.New(lines[0])
	}
	return nil, fmt.Errorf("%s %s: %w", b.Path, strings.Join(args, " "), err)
}

// call runs a verb of the binary in the directory dir.
func (b Binary) call(ctx context.Context, dir string, args ...string) (out, said []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, childTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.run, args...)
	cmd.Args[0] = "kthwd" // by another name it may be another program
	cmd.Env, cmd.Dir, cmd.WaitDelay = []string{}, dir, 5*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var o, e limited
	cmd.Stdout, cmd.Stderr = &o, &e
	runtime.LockOSThread() // with the thread that starts the child Pdeathsig would end it
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", childTime)
	}
	return o.Bytes(), e.Bytes(), err
}

// limited keeps the first childOutput bytes of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := childOutput - l.Len(); len(p) > room {
		l.Buffer.Write(p[:room])
	} else {
		l.Buffer.Write(p)
	}
	return len(p), nil
}

// messages returns the texts of the lines "kthwd: KIND…" of standard error.
func messages(said []byte, kind string) (all []string) {
	for line := range strings.Lines(string(said)) {
		if _, message, found := strings.Cut(line, "kthwd: "+kind); found {
			all = append(all, text.Line(strings.TrimSpace(message)))
		}
	}
	return all
}
