package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/logging"
	"kthwd/appliance/status"
	"kthwd/appliance/supervise"
	"kthwd/cmd/kthwd/cli"
	"kthwd/lb"
)

// fakeServer is an lb.Server that the test ends.
type fakeServer struct {
	end      chan error // result of Run; a nil channel waits for the context
	reloads  []lb.Config
	refuse   error
	counted  []error
	reported lb.Status
}

func (f *fakeServer) Name() string { return "lb" }

func (f *fakeServer) Run(ctx context.Context, ready func()) error {
	ready()
	select {
	case err := <-f.end:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (f *fakeServer) Reload(c lb.Config) error {
	if f.refuse == nil {
		f.reloads = append(f.reloads, c)
	}
	return f.refuse
}

func (f *fakeServer) CountReload(err error)           { f.counted = append(f.counted, err) }
func (f *fakeServer) Alive(context.Context) error     { return nil }
func (f *fakeServer) Status() lb.Status               { return f.reported }
func (f *fakeServer) Collector() prometheus.Collector { return nil }

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newFake makes a balancer around a fakeServer, with its own configuration file.
func newFake(t *testing.T, text string, args ...string) (b *balancer, f *fakeServer, file string, log *lockedBuffer) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "lb.yaml")
	write(t, file, text)
	log = &lockedBuffer{}
	a := newApp(log, log)
	a.started, a.Args = time.Now(), append([]string{"--role=lb", "--config=" + file, "--metrics-address="}, args...)
	l, err := a.reread()
	if err != nil {
		t.Fatal(err)
	}
	logs, err := logging.New(log, logging.Text, l.Config.LogLevel)
	if err != nil {
		t.Fatal(err)
	}
	f = &fakeServer{end: make(chan error, 1), reported: lb.Status{Ready: true}}
	b = &balancer{server: f, app: a, logs: logs, log: logs.Logger("kthwd"), alone: true, up: make(chan struct{}), loader: l}
	b.add(supervise.New(b.log), beforeIt(b))
	return b, f, file, log
}

// beforeIt is a node for the balancer to depend on.
func beforeIt(b *balancer) *supervise.Node { return supervise.New(b.log).Add(&fakeServer{}) }

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReload(t *testing.T) {
	b, f, file, log := newFake(t, "backend: [10.0.0.1:6443]\ndrain-timeout: 1s\n")
	if got := time.Duration(b.budget.Load()); got != 6*time.Second {
		t.Errorf("stop budget: got %v, want 6s", got)
	}
	write(t, file, "backend: [10.0.0.1:6443, 10.0.0.2:6443]\ndrain-timeout: 1m\nshutdown-delay: 5s\nlog-level: [warn, kthwd=info]\n")
	if err := b.reload(); err != nil {
		t.Fatal(err)
	}
	if len(f.reloads) != 1 || len(f.reloads[0].Backends) != 2 || f.reloads[0].DrainTimeout != time.Minute {
		t.Errorf("package lb got %+v", f.reloads)
	}
	if got := time.Duration(b.budget.Load()); got != 70*time.Second {
		t.Errorf("stop budget: got %v, want 1m10s", got)
	}
	if levels := b.logs.Levels(); levels["all"] != "warn" {
		t.Errorf("log levels: got %v", levels)
	}
	if !strings.Contains(log.String(), "changed=log-level,backend,shutdown-delay,drain-timeout") {
		t.Errorf("log: %s", log)
	}
	if len(f.counted) != 0 {
		t.Errorf("counted here what Reload counts: %v", f.counted)
	}
}

func TestReloadRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		text, want string
		refuse     error
		counted    int
	}{
		"unknown key":      {text: "backends: x\n", want: `err="lb.yaml:1: unknown key \"backends\"" hint="did you mean backend?"`, counted: 1},
		"no YAML":          {text: "backend: [", want: "lb.yaml:1: not YAML", counted: 1},
		"two problems":     {text: "backend: x\nbalance: y\n", want: `balance \"y\" is none of`, counted: 1},
		"no backend":       {text: "backend: []\n", want: "backend is empty", counted: 1},
		"other metrics":    {text: "backend: a:1\nlog-format: json\n", want: `hint="restart kthwd, or send it SIGUSR2`, counted: 1},
		"key of a role":    {text: "backend: a:1\ndata-dir: /x\n", want: "data-dir belongs to --role=controller", counted: 1},
		"package lb's own": {text: "backend: a:1\nbackend-ca: /x\n", refuse: &lb.Problem{Field: "BackendCA", Text: "/x: no such file"}, want: "lb.yaml:2: backend-ca /x: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			b, f, file, log := newFake(t, "backend: 10.0.0.1:6443\n")
			before := b.loader
			f.refuse = tt.refuse
			write(t, file, tt.text)
			err := b.reload()
			if err == nil {
				t.Fatal("taken")
			}
			b.refused(err)
			if text := strings.ReplaceAll(log.String(), filepath.Dir(file)+"/", ""); !strings.Contains(text, tt.want) || !strings.Contains(text, "the old configuration stays") {
				t.Errorf("got\n%s\nwant %s", text, tt.want)
			}
			if b.loader != before || len(f.reloads) != 0 || len(f.counted) != tt.counted {
				t.Errorf("something changed: package lb got %v, counted %v", f.reloads, f.counted)
			}
		})
	}
}

// The file is missing for a moment, then half written, and then valid.
func TestWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now fileVersion
		var fails error
		read, complaints := 0, 0
		w := &watcher{
			stat:    func() fileVersion { return now },
			reload:  func() error { read++; return fails },
			refused: func(error) { complaints++ },
		}
		now = fileVersion{there: true, inode: 1}
		w.seen = now
		asked := make(chan struct{})
		go w.run(t.Context(), asked)
		step := func(what string, wantRead, wantComplaints int) {
			t.Helper()
			time.Sleep(checkEvery)
			synctest.Wait()
			if read != wantRead || complaints != wantComplaints {
				t.Errorf("%s: read %d times with %d complaints, want %d and %d", what, read, complaints, wantRead, wantComplaints)
			}
		}
		time.Sleep(checkEvery / 2)
		step("no change", 0, 0)
		now.size = 10
		step("a change may go on", 0, 0)
		now.size = 20
		step("it does", 0, 0)
		step("it is over", 1, 0)
		step("it was read", 1, 0)

		fails = errors.New("half written")
		now = fileVersion{}
		step("gone", 1, 0)
		step("gone still: read once more before it is said", 2, 0)
		now, fails = fileVersion{there: true, inode: 2}, nil
		step("there again, another file", 2, 0)
		step("right", 3, 0)

		now.modified, fails = time.Now(), errors.New("wrong")
		step("wrong", 3, 0)
		step("wrong: a second chance", 4, 0)
		step("said", 5, 1)
		step("once", 5, 1)

		asked <- struct{}{}
		synctest.Wait()
		if read != 6 || complaints != 2 {
			t.Errorf("a signal: read %d times with %d complaints, want 6 and 2", read, complaints)
		}
		now.size = 30
		fails = nil
		asked <- struct{}{}
		step("read by the signal, not again", 7, 2)
		step("nor later", 7, 2)
	})
}

func TestStatFile(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "a"), filepath.Join(dir, "link")
	write(t, file, "x")
	write(t, filepath.Join(dir, "b"), "x")
	if err := os.Symlink("a", link); err != nil {
		t.Fatal(err)
	}
	seen := map[string]fileVersion{"missing": statFile(filepath.Join(dir, "c")), "none": statFile(""), "link": statFile(link), "file": statFile(file)}
	if seen["missing"] != (fileVersion{}) || seen["none"] != (fileVersion{}) || seen["link"] != seen["file"] || !seen["file"].there {
		t.Errorf("got %+v", seen)
	}
	if err := os.Symlink("b", link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	if statFile(link) == seen["link"] {
		t.Error("a link that points elsewhere is no change")
	}
	if err := os.Rename(filepath.Join(dir, "b"), file); err != nil {
		t.Fatal(err)
	}
	if statFile(file) == seen["file"] {
		t.Error("a file that was replaced is no change")
	}
}

// After a hand-over the process ends without an error.
func TestHandedOver(t *testing.T) {
	b, f, _, log := newFake(t, "backend: 10.0.0.1:6443\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b.end = cancel
	f.end <- fmt.Errorf("x: %w", lb.ErrHandedOver)
	if err := b.run(ctx); err != nil {
		t.Errorf("got %v", err)
	}
	if strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "handed over, ending") {
		t.Errorf("log: %s", log)
	}
	r := status.Report{Reason: "stopping"}
	b.report(&r)
	if !r.Ready || r.LB == nil {
		t.Errorf("a process that has handed over says %+v", r)
	}
}

// Beside a controller the process continues.
func TestHandedOverBesideAController(t *testing.T) {
	b, f, _, log := newFake(t, "backend: 10.0.0.1:6443\n")
	b.alone = false
	b.end = func() { t.Error("the process ends") }
	ctx, cancel := context.WithCancel(t.Context())
	g := supervise.New(b.log)
	b.add(g, g.Add(&fakeServer{}))
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	<-b.up
	f.end <- lb.ErrHandedOver
	for changed := g.Changed(); g.Status()[1].State != supervise.Standby; changed = g.Changed() {
		<-changed
	}
	if ready, reason := g.Ready(); !ready {
		t.Errorf("not ready: %s", reason)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("got %v\n%s", err, log)
	}
}

func TestReportOfABalancer(t *testing.T) {
	b, f, _, _ := newFake(t, "backend: 10.0.0.1:6443\n")
	f.reported = lb.Status{Reason: "stopping"}
	r := status.Report{Ready: true}
	b.report(&r)
	if r.Ready || r.Reason != "lb: stopping" {
		t.Errorf("got %+v", r)
	}
	r = status.Report{Reason: "etcd: waiting"}
	b.report(&r)
	if r.Ready || r.Reason != "etcd: waiting" {
		t.Errorf("got %+v", r)
	}
}

func TestNoRightToThePort(t *testing.T) {
	b, f, _, _ := newFake(t, "backend: 10.0.0.1:6443\n")
	f.end <- fmt.Errorf("listen on :443: %w", syscall.EACCES)
	err := b.Run(t.Context(), func() {})
	if hint := cli.HintFor(fmt.Errorf("lb: %w", err)); !strings.Contains(hint, "CAP_NET_BIND_SERVICE") || !strings.Contains(hint, "--listen") {
		t.Errorf("got %v with hint %q", err, hint)
	}
}

// An error about a file that only Run opens names the key, too.
func TestProblemOfRun(t *testing.T) {
	b, f, _, _ := newFake(t, "backend: 10.0.0.1:6443\n", "--access-log=/x")
	f.end <- &lb.Problem{Field: "AccessLog", Text: "permission denied: /x", Hint: "h"}
	err := b.Run(t.Context(), func() {})
	if err == nil || err.Error() != "--access-log permission denied: /x" || cli.HintFor(err) != "h" {
		t.Errorf("got %v with hint %q", err, cli.HintFor(err))
	}
}

func TestToggleDebug(t *testing.T) {
	b, _, _, _ := newFake(t, "backend: 10.0.0.1:6443\nlog-level: warn\n")
	for _, want := range []string{"debug", "warn", "debug"} {
		if b.toggleDebug(); b.logs.Levels()["lb"] != want {
			t.Errorf("got %v, want %s", b.logs.Levels(), want)
		}
	}
	b, _, _, _ = newFake(t, "backend: 10.0.0.1:6443\nlog-level: lb=6\n")
	if b.toggleDebug(); b.logs.Levels()["lb"] != "info" {
		t.Errorf("from more than debug: got %v, want info", b.logs.Levels())
	}
}

func TestSuccessor(t *testing.T) {
	a := &app{App: &cli.App{Args: []string{"--role=lb"}}, notify: &notifier{path: "@systemd"}}
	cmd, err := a.successorCommand()
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Join(cmd.Env, "\n")
	for _, want := range []string{"NOTIFY_SOCKET=@systemd", fmt.Sprintf("KTHWD_TAKE_OVER_FROM=%d", os.Getpid())} {
		if !strings.Contains(env, want) {
			t.Errorf("the environment lacks %s", want)
		}
	}
	if !filepath.IsAbs(cmd.Path) || len(cmd.Args) != 2 || cmd.Args[1] != "--role=lb" {
		t.Errorf("got %s %q", cmd.Path, cmd.Args)
	}
}

func TestUpgradeRefused(t *testing.T) {
	b, _, _, log := newFake(t, "backend: 10.0.0.1:6443\n")
	b.upgrading.Store(true)
	b.upgrade()
	b.alone = false
	b.upgrade()
	if text := log.String(); strings.Count(text, "upgrade refused: ") != 2 || !strings.Contains(text, "one is under way") {
		t.Errorf("got %s", text)
	}
}

func TestTakeInheritance(t *testing.T) {
	for name, tt := range map[string]struct {
		parent      string
		predecessor int
	}{
		"none": {}, "a parent's": {fmt.Sprint(os.Getppid()), os.Getppid()}, "another's": {"1000000", 0}, "nonsense": {"x", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(takeOverFrom, tt.parent)
			t.Setenv("LISTEN_PID", "1")
			t.Setenv("LISTEN_FDS", "3")
			in := takeInheritance()
			if in.predecessor != tt.predecessor || len(in.sockets) != 0 {
				t.Errorf("got %+v", in)
			}
			for _, v := range []string{takeOverFrom, "LISTEN_PID", "LISTEN_FDS"} {
				if _, there := os.LookupEnv(v); there {
					t.Errorf("%s is left", v)
				}
			}
		})
	}
}

func TestNotifierOfALoadBalancer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	n := takeNotifier()
	n.reloading()
	n.reloaded()
	n.extend(35 * time.Second)
	n.mainPID(17)
	for _, want := range []string{"RELOADING=1\nMONOTONIC_USEC=", "READY=1", "EXTEND_TIMEOUT_USEC=35000000", "MAINPID=17"} {
		b := make([]byte, 1024)
		systemd.SetReadDeadline(time.Now().Add(time.Minute))
		size, err := systemd.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:size]), want) {
			t.Errorf("got %q, %v; want %q", b[:size], err, want)
		}
	}
	if env := n.environment(); len(env) != 1 || env[0] != "NOTIFY_SOCKET="+path {
		t.Errorf("got %q", env)
	}
	var nobody *notifier
	if nobody.environment() != nil {
		t.Error("nobody has a socket")
	}
}

// Of two load balancers on one machine, one has the default socket; the other one logs
// that it has none, and how to query it.
func TestStatusSocket(t *testing.T) {
	dir, open := t.TempDir(), t.TempDir()
	for d, mode := range map[string]os.FileMode{dir: 0o700, open: 0o755} {
		if err := os.Chmod(d, mode); err != nil {
			t.Fatal(err)
		}
	}
	taken := filepath.Join(dir, "taken.sock")
	other, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, tt := range []struct {
		name, path, log, err string
		args                 []string
		want                 bool
	}{
		{name: "free", path: filepath.Join(dir, "free.sock"), want: true},
		{name: "none", path: ""},
		{name: "taken", path: taken, log: "kthwd status --metrics-address=127.0.0.1:10301 queries this one", args: []string{"--metrics-address=127.0.0.1:10301"}},
		{name: "taken, and no metrics address", path: taken, log: "nothing can query this one"},
		{name: "taken, and named", path: taken, args: []string{"--status-socket=" + taken}, err: "address already in use"},
		{name: "a directory for all", path: filepath.Join(open, "x.sock"), log: "other users have access"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _, _, log := newFake(t, "backend: [10.0.0.1:6443]\n", tt.args...)
			b.loader.Config.StatusSocket = tt.path // as if it were the default
			got, err := b.statusSocket()
			if want := map[bool]string{true: tt.path}[tt.want]; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if err != nil && tt.err == "" || tt.err != "" && !strings.Contains(fmt.Sprint(err), tt.err) {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
			if !strings.Contains(log.String(), tt.log) || tt.log == "" && log.String() != "" {
				t.Errorf("got log %q, want %q", log, tt.log)
			}
		})
	}
}
