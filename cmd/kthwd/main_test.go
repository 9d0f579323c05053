package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"kthwd/lb"
	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

var updateScripts = flag.Bool("update-scripts", false, "rewrite the expected output in the scripts")

// kthwdBinary is the real kthwd, as make build links it.
var kthwdBinary string

// TestMain builds the real binary, once, unless KTHWD_BIN names one.
func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "kthwd-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := 1
	if kthwdBinary, err = buildBinary(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// buildBinary puts kthwd into dir and returns its path.
func buildBinary(dir string) (string, error) {
	path := filepath.Join(dir, "kthwd")
	if given := os.Getenv("KTHWD_BIN"); given != "" {
		if !filepath.IsAbs(given) {
			return "", fmt.Errorf("KTHWD_BIN=%s is no absolute path", given)
		}
		return path, os.Symlink(given, path)
	}
	cmd := exec.Command("make", "--no-print-directory", "-C", "../..", "build", "BIN="+path)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MAKE") && !strings.HasPrefix(v, "MFLAGS") { // set by a make that runs this test
			cmd.Env = append(cmd.Env, v)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return path, nil
}

// TestScripts runs the user stories in testdata on the real binary.
//
// The commands beside testscript's own:
//
//	exits CODE PROGRAM [ARG...]         runs a program; its exit code must be CODE
//	healthy [FLAG...]                   runs kthwd status of a controller, which must be healthy; its disk may be slow
//	freeport NAME...                    sets each variable to a port that is free
//	waitfor TIMEOUT PROGRAM [ARG...]    runs a program until it succeeds
//	background NAME PROGRAM [ARG...]    starts a program, its output in NAME.log
//	signal NAME SIGNAL                  sends it a signal: TERM, INT, HUP, KILL, USR1, USR2
//	ended NAME CODE TIMEOUT             waits for its end; its exit code must be CODE
//	adopt NAME ADDRESS                  makes a background process of the kthwd with that metrics address
//	systemd NAME                        listens on NOTIFY_SOCKET and writes each message to NAME.log, one a line
//	backend NAME...                     sets each variable to the address of a TLS server whose /readyz says ok; its CA is NAME.pem
//	connect NAME ADDRESS                opens a connection through a load balancer and keeps it
//	carries NAME                        a request is answered on that connection
//	hangup NAME                         closes it
//
// A process that outlives its script is killed.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *updateScripts,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(kthwdBinary)+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("NO_COLOR", "1")
			env.Values[processesKey{}] = map[string]*process{}
			env.Values[connectionsKey{}] = map[string]*connection{}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "lb": // this build has a data path
				c := lb.Default()
				c.Backends = []string{"192.0.2.1:6443"}
				_, err := lb.New(c, lb.Options{})
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "healthy": healthy, "freeport": freeport, "waitfor": waitFor,
			"background": background, "signal": sendSignal, "ended": ended, "adopt": adopt, "systemd": systemd,
			"backend": backend, "connect": connect, "carries": carries, "hangup": hangup,
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case err == nil && want == 0:
	case errors.As(err, &exit) && exit.ExitCode() == want:
	default:
		ts.Fatalf("%s: got %v, want exit code %d", strings.Join(args[1:], " "), err, want)
	}
}

// healthy runs kthwd status of a controller, and requires that it is healthy, or degraded by a slow disk alone: the
// machine's may be.
func healthy(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: healthy [FLAG...]")
	}
	err := ts.Exec("kthwd", append([]string{"status"}, args...)...)
	var exit *exec.ExitError
	if err == nil {
		return
	}
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		ts.Fatalf("kthwd status: got %v, want exit code 0", err)
	}
	slow := false
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if strings.HasPrefix(line, "degraded: ") && !slowDisk.MatchString(line) {
			ts.Fatalf("kthwd status: %s", line)
		}
		slow = slow || slowDisk.MatchString(line)
	}
	if !slow {
		ts.Fatalf("kthwd status: exit code 1, and no line says that the disk is slow")
	}
}

var slowDisk = regexp.MustCompile(`: etcd (fsync p99 is|waits for its disk) `)

func freeport(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: freeport NAME...")
	}
	for _, name := range args {
		port, err := kthwtest.FreePort()
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(port))
	}
}

// patience is how long a script waits for an expected result. The time in the script
// only bounds a hang: on a busy machine it is five minutes at least.
func patience(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	return max(d, 5*time.Minute), err
}

// waitFor polls, because another process gives no event to wait for.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: waitfor TIMEOUT PROGRAM [ARG...]")
	}
	timeout, err := patience(args[0])
	ts.Check(err)
	begun := time.Now()
	deadline := begun.Add(timeout)
	for {
		asked := time.Now()
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		out, err := command(ctx, ts, args[1:]).CombinedOutput()
		cancel()
		if err == nil {
			return
		}
		for name, p := range processes(ts) {
			if p.hasEnded() {
				ts.Fatalf("waitfor %s: meanwhile %s ended: %v\n%s", strings.Join(args[1:], " "), name, p.err, p.log(ts))
			}
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waitfor %s: not within %s: %v\n%s", strings.Join(args[1:], " "), timeout, err, out)
		}
		time.Sleep(harness.Pause(time.Since(begun), time.Since(asked)))
	}
}

// command runs in the script's directory with the script's environment.
func command(ctx context.Context, ts *testscript.TestScript, args []string) *exec.Cmd {
	program := args[0]
	if program == "kthwd" {
		program = kthwdBinary
	}
	cmd := exec.CommandContext(ctx, program, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "NO_COLOR", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WORK"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}
