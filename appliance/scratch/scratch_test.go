package scratch

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func make1(t *testing.T, place string) *Dir {
	t.Helper()
	d, err := New([]string{place}, 1)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func list(t *testing.T, place string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(place)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestNewTakesTheFirstPlaceWithRoom(t *testing.T) {
	good := t.TempDir()
	file := filepath.Join(good, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := New([]string{filepath.Join(good, "missing"), file, good}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(d.Path); err != nil || filepath.Dir(d.Path) != good || info.Mode().Perm() != 0o700 {
		t.Errorf("got %s (%v, %v), want a directory of mode 0700 in %s", d.Path, info, err, good)
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
	if got := list(t, good); !slices.Equal(got, []string{"file"}) {
		t.Errorf("%q are left", got)
	}
}

func TestNewNamesEachPlaceWithoutRoom(t *testing.T) {
	place := t.TempDir()
	_, err := New([]string{"/nowhere", place}, 1<<62)
	if err == nil {
		t.Fatal("got a directory with 4 EiB of room")
	}
	for _, want := range []string{"/nowhere", place, "are needed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not have %q", err, want)
		}
	}
	if got := list(t, place); len(got) > 0 {
		t.Errorf("%q are left", got)
	}
}

// TestRemoveWhileSomethingWrites removes a directory into which another goroutine writes.
func TestRemoveWhileSomethingWrites(t *testing.T) {
	place := t.TempDir()
	d := make1(t, place)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.WriteFile(filepath.Join(d.Path, "file"), nil, 0o600)
			}
		}
	}()
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
	close(stop)
	<-stopped
	if got := list(t, place); len(got) > 0 {
		t.Errorf("%q are left", got)
	}
}

// TestSweep removes what a killed run leaves, and nothing else.
func TestSweep(t *testing.T) {
	place, elsewhere := t.TempDir(), t.TempDir()
	live, killed, kept := make1(t, place), make1(t, place), make1(t, place)
	defer live.Remove()
	if err := kept.Keep(); err != nil {
		t.Fatal(err)
	}
	killed.lock.Close()
	kept.lock.Close()
	old, young := filepath.Join(place, prefix+"1"), filepath.Join(place, prefix+"2") // without a lock
	for _, dir := range []string{old, young, filepath.Join(place, "kthwd-try-x"), filepath.Join(place, "other")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-2*locked)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(elsewhere, lockFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(place, prefix+"3")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(place, prefix+"4"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	removed := Sweep([]string{"/nowhere", place})
	want := []string{killed.Path, old}
	slices.Sort(want)
	slices.Sort(removed)
	if !slices.Equal(removed, want) {
		t.Errorf("removed %q, want %q", removed, want)
	}
	if got := len(list(t, place)); got != 7 {
		t.Errorf("%d entries are left, want 7: %q", got, list(t, place))
	}
	if got := list(t, elsewhere); len(got) != 1 {
		t.Errorf("the directory behind a link has %q", got)
	}
}

func TestSweepLeavesOthersDirectories(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a directory of another user")
	}
	place := t.TempDir()
	d := make1(t, place)
	d.lock.Close()
	if err := os.Chown(d.Path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if got := Sweep([]string{place}); len(got) > 0 {
		t.Errorf("removed %q of another user", got)
	}
}

func TestClaim(t *testing.T) {
	a, err := claim(6, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	b, err := claim(6, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if len(a.Numbers) != 6 || len(b.Numbers) != 6 || slices.ContainsFunc(b.Numbers, func(p int) bool { return slices.Contains(a.Numbers, p) }) {
		t.Errorf("got %v and %v, want six ports each, none twice", a.Numbers, b.Numbers)
	}
}

func TestFind(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for path, mode := range map[string]fs.FileMode{filepath.Join(one, "plain"): 0o644, filepath.Join(two, "both"): 0o755, filepath.Join(one, "both"): 0o644, filepath.Join(two, "good"): 0o755} {
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := one + ":" + two
	for _, c := range []struct {
		command, want string
		code          int
	}{
		{command: "good", want: filepath.Join(two, "good")},
		{command: "both", want: filepath.Join(two, "both")},
		{command: "plain", code: NotExecutable},
		{command: "missing", code: NotFound},
		{command: "", code: NotFound},
		{command: one, code: NotExecutable},
		{command: one + "/missing", code: NotFound},
		{command: one + "/plain", code: NotExecutable},
		{command: two + "/good", want: two + "/good"},
	} {
		got, err := Find(c.command, path)
		var unrunnable *Unrunnable
		switch {
		case c.code == 0 && (err != nil || got != c.want):
			t.Errorf("%q: got %q, %v, want %q", c.command, got, err, c.want)
		case c.code != 0 && (!errors.As(err, &unrunnable) || unrunnable.Code() != c.code):
			t.Errorf("%q: got %q, %v, want exit code %d", c.command, got, err, c.code)
		}
	}
}

func sh(script string) Command { return Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}} }

func TestCommandsExitCode(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill -9 $$": 137, "kill -15 $$": 143} {
		if got, err := sh(script).Run(nil, nil); got != want || err != nil {
			t.Errorf("%s: got %d, %v, want %d", script, got, err, want)
		}
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("exit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Command{Path: script, Args: []string{"script"}}.Run(nil, nil)
	var unrunnable *Unrunnable
	if !errors.As(err, &unrunnable) || unrunnable.Code() != NotExecutable || unrunnable.Hint() == "" {
		t.Errorf("a script without its shell: got %v, want exit code %d and a hint", err, NotExecutable)
	}
}

// TestCommandGetsSignals lets the command say when it waits for them.
func TestCommandGetsSignals(t *testing.T) {
	for name, want := range map[string]int{"a signal": 7, "gone": 8} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			signals, gone := make(chan os.Signal, 1), make(chan struct{})
			go func() {
				_, _ = r.Read(make([]byte, 8))
				if name == "gone" {
					close(gone)
				} else {
					signals <- syscall.SIGUSR1
				}
			}()
			c := sh("trap 'exit 7' USR1; trap 'exit 8' TERM; echo ready; while :; do sleep 0.01; done")
			c.Stdout = w
			got, err := c.Run(signals, gone)
			w.Close()
			if got != want || err != nil {
				t.Errorf("got %d, %v, want %d", got, err, want)
			}
		})
	}
}
