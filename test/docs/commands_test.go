package docs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

// notRun is the number of command blocks that are not run, each with its reason in a
// comment "<!-- not run: … -->" in the line above. Think twice before you raise it.
const notRun = 0

// installation is the page whose commands test/systemd runs, on machines that
// systemd boots.
const installation = "docs/install.md"

// TestBlocks requires every block of commands to be one that TestCommands runs.
func TestBlocks(t *testing.T) {
	shells := []string{"sh", "bash", "shell", "zsh", "console", ""}
	skipped := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks() {
			switch {
			case strings.HasPrefix(b.comment, "<!-- not run: "):
				skipped++
			case b.kind == "console" && (len(b.lines) == 0 || !strings.HasPrefix(b.lines[0], "$ ")):
				t.Errorf("%s:%d: a console block begins with a line \"$ command\"", p.path, b.line)
			case b.kind != "console" && slices.Contains(shells, b.kind):
				t.Errorf("%s:%d: commands are written as a console block with lines \"$ command\", so that they are run; other blocks say what they are", p.path, b.line)
			}
		}
	}
	if skipped != notRun {
		t.Errorf("got %d blocks that are not run, want %d", skipped, notRun)
	}
}

// A command is a line "$ command" and its output on the page: these lines in this
// order. "…" stands for any text, and a line of it for any number of lines.
type command struct {
	at    string // docs/operations/status.md:17
	text  string
	want  []string
	first bool // from a comment, see firstComment
}

// firstComment matches the comment with a command that the reader of a page has already
// run: for example, the one that starts the page's controller.
var firstComment = regexp.MustCompile("^<!-- first: (.+) -->$")

func (p page) commands() (all []command) {
	inside := false // a console block that is run
	previous := ""
	for i, line := range strings.Split(p.text, "\n") {
		text, isCommand := strings.CutPrefix(line, "$ ")
		at := fmt.Sprintf("%s:%d", p.path, i+1)
		switch m := firstComment.FindStringSubmatch(line); {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console" && p.path != installation && !strings.HasPrefix(previous, "<!-- not run: ")
		case m != nil:
			c := command{at: at, text: m[1], first: true}
			if c.staysUp() {
				c.want = []string{"… all ready …"}
			}
			all = append(all, c)
		case !inside:
		case isCommand:
			all = append(all, command{at: at, text: text})
		case len(all) > 0 && strings.Trim(line, " …") != "":
			all[len(all)-1].want = append(all[len(all)-1].want, line)
		}
		previous = line
	}
	return all
}

// staysUp reports whether a command stays in the foreground. It is then ended by the
// page, by the next such command, or at the end of the page.
func (c command) staysUp() bool {
	return c.text == "make run" || strings.HasPrefix(c.text, "kthwd --role=") || strings.HasPrefix(c.text, "kthwd --config=")
}

// failure reports whether the page shows the command failing.
func (c command) failure() bool {
	return slices.ContainsFunc(c.want, func(line string) bool { return strings.HasPrefix(line, "kthwd: error: ") })
}

// check compares the output of a command with the page.
func (c command) check(output string) error {
	lines := strings.Split(output, "\n")
	for _, want := range c.want {
		pattern := linePattern(want)
		i := slices.IndexFunc(lines, func(line string) bool { return pattern.MatchString(strings.TrimSpace(line)) })
		if i < 0 {
			return fmt.Errorf("lacks the line %q:\n%s", want, output)
		}
		lines = lines[i+1:]
	}
	return nil
}

func linePattern(line string) *regexp.Regexp {
	pattern := regexp.QuoteMeta(strings.Join(strings.Fields(line), " "))
	pattern = strings.NewReplacer(" … ", ".*", " …", ".*", "… ", ".*", "…", ".*", " ", `\s+`).Replace(pattern)
	return regexp.MustCompile("^" + pattern + "$")
}

func TestLinePattern(t *testing.T) {
	for _, tt := range []struct {
		line, output string
		want         bool
	}{
		{"all ready …", "all ready                 3.04s", true},
		{"etcd  ready  …  0", "etcd                          ready  3s     0", true},
		{"etcd  ready  …  0", "etcd                          ready  3s     0         lost", false},
		{"ready", "not ready", false},
		{"kubectl --kubeconfig …/.kthwd/admin.kubeconfig get", "kubectl --kubeconfig /x/.kthwd/admin.kubeconfig get", true},
	} {
		if got := linePattern(tt.line).MatchString(tt.output); got != tt.want {
			t.Errorf("%q for %q: got %v, want %v", tt.line, tt.output, got, tt.want)
		}
	}
}

// running is the name of the machine for all pages about a running controller.
const running = "a controller that runs"

// machines maps the name of each machine to its pages, in order. Each page has its own
// machine, except those that only need a running controller.
func machines(all []page) (names []string, run map[string][]page) {
	run = map[string][]page{}
	for _, p := range all {
		commands := p.commands()
		if len(commands) == 0 {
			continue
		}
		name := p.path
		if slices.ContainsFunc(commands, func(c command) bool { return c.first && c.staysUp() }) {
			name = running
		}
		if run[name] == nil {
			names = append(names, name)
		}
		run[name] = append(run[name], p)
	}
	return names, run
}

// TestCommands runs the commands of each page, in order, on a machine with the guide's
// files in /var/lib/kubernetes, in a copy of the checkout, as root or as root of a user
// namespace.
func TestCommands(t *testing.T) {
	if harness.Updating() {
		t.Skip("-update is about tables")
	}
	names, run := machines(pages(t))
	if here := os.Getenv(machineEnv); here != "" {
		runPages(t, run[here])
		return
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runMachine(t, name)
		})
	}
}

// runPages runs the pages of TestCommands in this process, which is the machine.
func runPages(t *testing.T, all []page) {
	dir, home := setUpMachine(t)
	s := session{machine: t, dir: dir}
	if all[0].path == adopting {
		setUpHandmade(t, dir, home)
	}
	for _, p := range all {
		t.Run(p.path, func(t *testing.T) {
			for _, c := range p.commands() {
				s.run(t, c)
			}
		})
	}
	s.end(t)
}

// session is a person at a terminal, and at a second one.
type session struct {
	machine *testing.T // all processes end with it
	dir     string
	up      *process // in the foreground of the first terminal
}

// process is a command that stays in the foreground.
type process struct {
	command
	cmd  *exec.Cmd
	log  kthwtest.Log
	gone chan struct{} // closed when it has ended, after err is set
	err  error
}

func (s *session) run(t *testing.T, c command) {
	t.Helper()
	t.Logf("%s: $ %s", c.at, c.text)
	if c.first && s.up != nil && s.up.text == c.text && !s.up.stopping() {
		return // the previous page left it running
	}
	if c.staysUp() {
		s.end(t)
		s.up = s.start(t, c)
		return
	}
	if s.up == nil { // nothing is starting or stopping, so there is nothing to wait for
		if err := s.try(t.Context(), c); err != nil {
			t.Fatalf("%s: %s: %v", c.at, c.text, err)
		}
		return
	}
	var first error // the reason to report: a repeated command may fail because of its earlier run
	kthwtest.WaitFor(t, c.at+": "+c.text, 5*time.Minute, func() error {
		err := s.try(t.Context(), c)
		if first == nil {
			first = err
		}
		if err != nil {
			err = fmt.Errorf("%w\nat first: %w", err, first)
		}
		return err
	})
}

// try runs a command once.
func (s *session) try(ctx context.Context, c command) error {
	patience := time.Minute                                                                                       // for one that waits for what will not come
	if s.up == nil || strings.HasPrefix(c.text, "kthwd try ") || c.text == "kthwd pki ca sign --ca=front-proxy" { // the last one takes a minute by itself
		patience = kthwtest.Soon
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", c.text)
	var stdout, stderr bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &stdout, &stderr
	err := cmd.Run()
	output := stdout.String() + "\n" + stderr.String()
	var exit *exec.ExitError
	switch {
	case c.failure() && !errors.As(err, &exit):
		return errors.Join(fmt.Errorf("the command did not fail:\n%s", output), err)
	case !c.failure() && err != nil:
		return fmt.Errorf("%w:\n%s", err, output)
	}
	return c.check(output)
}

// start runs a command that stays in the foreground, and waits for its first output.
func (s *session) start(t *testing.T, c command) *process {
	t.Helper()
	p := &process{command: c, cmd: exec.Command("sh", "-c", "exec "+c.text), gone: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = s.dir, &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", c.at, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.gone)
	}()
	s.machine.Cleanup(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // no process is left, unless the test has failed
		<-p.gone
		if s.machine.Failed() {
			s.machine.Logf("%s: $ %s\n%s", c.at, c.text, p.log.Tail(60))
		}
	})
	kthwtest.WaitFor(t, c.at+": "+c.text, 5*time.Minute, func() error {
		if p.hasGone() {
			t.Fatalf("%s: %s: ended: %v\n%s", c.at, c.text, p.err, p.log.String())
		}
		return c.check(p.log.String())
	})
	return p
}

func (p *process) hasGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// stopping reports whether the page has already ended the process.
func (p *process) stopping() bool { return strings.Contains(p.log.String(), "asked to stop") }

// end presses Ctrl-C in the first terminal, unless the page has ended the process.
// kthwd must then have logged the request and exited with 0.
func (s *session) end(t *testing.T) {
	t.Helper()
	p := s.up
	if p == nil {
		return
	}
	s.up = nil
	if !p.stopping() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT)
	}
	kthwtest.WaitFor(t, p.at+": end of "+p.text, kthwtest.Soon, func() error {
		if !p.hasGone() {
			return errors.New("it runs")
		}
		return nil
	})
	if p.err != nil && !strings.HasPrefix(p.text, "make ") { // make exits with 130 or 2 after Ctrl-C, whatever its program's exit code
		t.Errorf("%s: %s: got %v, want exit code 0", p.at, p.text, p.err)
	}
	if log := p.log.String(); !strings.Contains(log, "msg=\"asked to stop") || strings.Contains(log, "goroutine ") {
		t.Errorf("%s: %s: no orderly stop:\n%s", p.at, p.text, p.log.Tail(30))
	}
}
