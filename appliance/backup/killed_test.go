package backup

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/appliance/archive"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/verify"
	"kthwd/appliance/backup/workdir"
	"kthwd/appliance/config"
	"kthwd/appliance/datadir"
)

// diesAt is the variable that names the event at which a child kills itself, counted from 1.
const diesAt = "KTHWD_TEST_DIES_AT"

// olderRuns is the variable that gives a child a running kthwd that is older.
const olderRuns = "KTHWD_TEST_OLDER_RUNS"

// mortal returns a Report that kills this process at the event of diesAt.
func mortal() func(step.Event) {
	at, _ := strconv.Atoi(os.Getenv(diesAt))
	n := 0
	return func(step.Event) {
		if n++; n == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
	}
}

// killedChild runs this test as a child process that dies at an event, or after a time that is not 0.
// It reports whether the child was killed.
func killedChild(t *testing.T, event int, after time.Duration, args ...string) (killed bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", diesAt, event))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	must(t, cmd.Start())
	if after > 0 {
		timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err := cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return true
	}
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, said.String())
	}
	return false
}

// TestCreateKilled kills backup create with SIGKILL at each event of its steps, and at random times: every
// archive with a final name can be verified, and the one from before is never lost.
func TestCreateKilled(t *testing.T) {
	c, dir := newController(t, 3), t.TempDir()
	begun := time.Now()
	good := c.create(t, c.options(dir)).File
	whole := time.Since(begun)
	verified := map[string]bool{good: true}
	check := func(what string) {
		t.Helper()
		all, err := filepath.Glob(filepath.Join(dir, "[^.]*"))
		must(t, err)
		for _, file := range all {
			if verified[file] {
				continue
			}
			if _, err := verify.Verify(t.Context(), verify.Options{File: file, Checker: checker}); err != nil {
				t.Errorf("%s: %s has a final name: %v", what, file, err)
			}
			verified[file] = true
		}
		if err := archive.Check(good); err != nil {
			t.Errorf("%s: the archive from before: %v", what, err)
		}
	}
	for _, old := range []string{"", "yes"} {
		t.Setenv(olderRuns, old)
		events := 0
		for killed := true; killed && events < 100; {
			events++
			killed = killedChild(t, events, 0, "create", c.config.DataDir, dir)
			check(fmt.Sprintf("killed at event %d, an older kthwd: %q", events, old))
		}
		if events < 10 {
			t.Errorf("only %d events, want two for each of six steps", events)
		}
	}
	t.Setenv(olderRuns, "")
	source := rand.New(rand.NewPCG(16, 1))
	for range 6 {
		after := time.Duration(source.Int64N(int64(whole))) + time.Millisecond
		killedChild(t, 0, after, "create", c.config.DataDir, dir)
		check(fmt.Sprintf("killed after %v", after))
	}
	c.create(t, c.options(dir)) // it removes what is left over
	if left, err := filepath.Glob(filepath.Join(dir, workdir.Prefix+"*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestVerifyKilled kills a verification: the archive is as it was, and nothing stays beside it
// after the next one.
func TestVerifyKilled(t *testing.T) {
	c, dir := newController(t, 3), t.TempDir()
	file := c.create(t, c.options(dir)).File
	before, err := os.ReadFile(file)
	must(t, err)
	events := 0
	for killed := true; killed && events < 100; {
		events++
		killed = killedChild(t, events, 0, "verify", file)
	}
	if events < 6 {
		t.Errorf("only %d events", events)
	}
	if after, err := os.ReadFile(file); err != nil || archiveSum(after) != archiveSum(before) {
		t.Errorf("the archive has changed: %v", err)
	}
	if left := names(t, dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// TestPruneKilled kills a prune at random times: what remains is whole, and the newest is among it.
func TestPruneKilled(t *testing.T) {
	c, first := newController(t, 1), t.TempDir()
	a, err := archive.Open(c.create(t, c.options(first)).File)
	must(t, err)
	defer a.Close()
	source := rand.New(rand.NewPCG(16, 2))
	for range 5 {
		dir := t.TempDir()
		var newest string
		for i := range 40 {
			newest = filepath.Join(dir, fmt.Sprintf("c0-20260101T%06dZ-r%d.kthwd", i, i+1))
			must(t, os.Link(a.Path, newest)) // a name of another one, which Check does not look at
		}
		killedChild(t, 0, time.Duration(source.Int64N(int64(300*time.Millisecond)))+time.Millisecond, "prune", dir)
		left := names(t, dir)
		if len(left) == 0 || left[len(left)-1] != filepath.Base(newest) {
			t.Fatalf("left: %v, want %s among it", left, newest)
		}
		for _, name := range left {
			must(t, archive.Check(filepath.Join(dir, name)))
		}
	}
}

// TestRestoreKilled kills a restore with SIGKILL at each event and at random times: either nothing has
// changed, or the next start finishes it.
func TestRestoreKilled(t *testing.T) {
	c := newController(t, 5)
	file := c.create(t, c.options(t.TempDir())).File
	once := func(t *testing.T, event int, after time.Duration) (killed bool, took time.Duration) {
		t.Helper()
		o := restoreOptions(t, file)
		begun := time.Now()
		killed = killedChild(t, event, after, "restore", file, o.Config.DataDir)
		took = time.Since(begun)
		l := o.Config.Layout()
		if datadir.Exists(l.Lock()) {
			lock, err := datadir.Lock(l)
			must(t, err)
			_, err = datadir.FinishRestore(l) // as a start does
			must(t, errors.Join(err, lock.Close()))
		}
		switch whole := l.HasData(); {
		case whole:
			checkRestored(t, o.Config, 5)
		case datadir.Exists(l.CA()):
			t.Errorf("half a restore: %v", names(t, l.Dir))
		case !killed:
			t.Error("a restore that was not killed has restored nothing")
		}
		return killed, took
	}
	events, killed, whole := 0, true, time.Duration(0)
	for killed && events < 100 {
		events++
		killed, whole = once(t, events, 0)
	}
	if events < 8 {
		t.Errorf("only %d events, want two for each of four steps", events)
	}
	source := rand.New(rand.NewPCG(16, 3))
	for range 8 {
		after := time.Duration(source.Int64N(int64(whole))) + time.Millisecond
		t.Run(fmt.Sprintf("after %v", after), func(t *testing.T) { once(t, 0, after) })
	}
}

// verifyChild, pruneChild and restoreChild are the children of these tests.
func verifyChild(file string) error {
	report := mortal()
	_, err := verify.Verify(context.Background(), verify.Options{File: file, Checker: checker, Report: report})
	return err
}

func pruneChild(dir string) error {
	_, err := archive.Prune(dir, 1, archive.Verified{})
	return err
}

func restoreChild(file, dir string) error {
	c := config.Default().Controller
	c.DataDir, c.Name, c.BindAddress, c.AdvertiseAddress = dir, "new", "127.0.0.2", "127.0.0.2"
	if err := c.Resolve(); err != nil {
		return err
	}
	r, err := BeginRestore(RestoreOptions{File: file, Config: c, Settings: []byte("name: new\n"), Kthwd: "v0.1.0", Log: noLog, Report: mortal()})
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Run(context.Background())
}

// runChild runs the child that the arguments name, and reports whether there is one.
func runChild(args []string) (code int, is bool) {
	var err error
	switch {
	case len(args) == 4 && args[1] == "create":
		return createChild(args[2], args[3]), true
	case len(args) == 3 && args[1] == "verify":
		err = verifyChild(args[2])
	case len(args) == 3 && args[1] == "prune":
		err = pruneChild(args[2])
	case len(args) == 4 && args[1] == "restore":
		err = restoreChild(args[2], args[3])
	default:
		return 0, false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 1, true
	}
	return 0, true
}
