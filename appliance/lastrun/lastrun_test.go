package lastrun

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, f Files) *Run {
	t.Helper()
	r := Begin(f, Start{Version: "v1", Started: time.Now(), Limit: 170 << 20, Needs: 384 << 20, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { r.End(nil) }) // it releases the trace's file
	return r
}

// TestJudge holds what is said of each way to end.
func TestJudge(t *testing.T) {
	at := time.Date(2026, 1, 2, 2, 22, 0, 0, time.Local)
	dead := Record{Boot: "b", alive: at, Memory: Memory{Needs: 384 << 20, Kills: map[string]uint64{"/": 1, "/a": 2, machine: 7}, Own: &Own{Group: "/a", Inode: 5, Alone: true}}}
	limited, asked := dead, dead
	limited.Memory.Limit = 170 << 20
	large := limited
	large.Memory.Cluster = 1500 << 20
	asked.AskedAt, asked.Signal = at, "terminated"
	shared := dead
	shared.Memory.Own = &Own{Group: "/a", Inode: 5}
	ended := asked
	ended.EndedAt = at
	failed := ended
	failed.Error = "etcd: no space"
	noted := func(result string) Record {
		r := limited
		r.Service = &Service{At: at, Result: result, Status: "7"}
		return r
	}
	counted := func(remains bool, groups ...string) evidence {
		e := evidence{boot: "b", kills: map[string]uint64{"/": 1, "/a": 2, machine: 7}, remains: remains}
		for _, group := range groups {
			e.kills[group]++
		}
		return e
	}
	same := counted(true)
	for _, tt := range []struct {
		name string
		r    Record
		e    evidence
		kind Kind
		want string
	}{
		{"in order", ended, same, Stopped, `stopped in order at 2026-01-02 02:22:00, asked to by the signal "terminated"`},
		{"in order before a restart of the machine", ended, evidence{boot: "c"}, Stopped, "in order"},
		{"an error", failed, same, Failed, "02:22:00: etcd: no space"},
		{"a crash", dead, evidence{boot: "b", crash: "panic: oh", crashAt: at}, Crashed, "crashed at 2026-01-02 02:22:00: panic: oh"},
		{"the watchdog", dead, evidence{boot: "b", crash: "SIGABRT: abort", crashAt: at}, Crashed, "WatchdogSec="},
		{"another boot", limited, evidence{boot: "c"}, PowerLoss, "lost power"},
		{"its own group", limited, counted(true, "/a", "/", machine), OutOfMemory, "killed at about 2026-01-02 02:22:00: memory limit 170 MiB, an empty control plane needs 384 MiB"},
		{"its own group, of a large cluster", large, counted(true, "/a", "/", machine), OutOfMemory, "memory limit 170 MiB, with the objects of its cluster this controller needs 1500 MiB"},
		{"its own group, without a limit", dead, counted(true, "/a", machine), OutOfMemory, "the machine had no memory left"},
		{"beside another process that lacked memory", limited, counted(true, "/", machine), Killed, "by SIGKILL: it left neither"},
		{"its own group, with others in it", shared, counted(true, "/a", machine), Killed, "by SIGKILL, perhaps by the kernel, which ended a process for lack of memory then"},
		{"its own group is gone", limited, counted(false, machine), Killed, "perhaps by the kernel, which ended a process for lack of memory then: memory limit 170 MiB, an"},
		{"its own group is gone, and no process lacked memory", limited, counted(false), Killed, "by SIGKILL: it left neither"},
		{"a group made anew", limited, evidence{boot: "b", kills: map[string]uint64{"/": 1, "/a": 0, machine: 7}}, Killed, "by SIGKILL: it left neither"},
		{"killed", dead, same, Killed, "killed at about 2026-01-02 02:22:00 by SIGKILL"},
		{"killed in the stop", asked, same, Killed, `before it had stopped, asked to by the signal "terminated"`},
		{"systemd: memory", noted("oom-kill"), same, OutOfMemory, "killed at 2026-01-02 02:22:00: memory limit 170 MiB"},
		{"systemd: too slow", noted("timeout"), same, Timeout, "longer than its unit allows"},
		{"systemd: silent", noted("watchdog"), same, Timeout, "no sign of life"},
		{"systemd: a code", noted("exit-code"), same, Failed, "exit code 7"},
		{"systemd: a signal", noted("signal"), same, Killed, "killed at 2026-01-02 02:22:00 by SIGKILL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			end := tt.r.judge(tt.e)
			if end.Kind != tt.kind || !strings.Contains(end.Text, tt.want) {
				t.Errorf("got %s: %q; want %s: %q", end.Kind, end.Text, tt.kind, tt.want)
			}
		})
	}
}

// TestLife follows a directory through runs that end differently.
func TestLife(t *testing.T) {
	f := In(filepath.Join(t.TempDir(), "run"))
	first := start(t, f)
	if _, err := os.Stat(f.Record()); first.Before() != nil || !os.IsNotExist(err) {
		t.Fatalf("a new directory: got %v and %v; want nothing before, and no file until the checks have passed", first.Before(), err)
	}
	if _, err := f.Last(); !errors.Is(err, ErrNone) {
		t.Fatalf("got %v, want ErrNone", err)
	}
	first.Keep()
	first.Ready()
	first.Asked(errors.New("terminated"))
	if end, err := f.Last(); err != nil || end.Kind != Running {
		t.Fatalf("while it runs: got %+v and %v", end, err)
	}
	first.End(nil)
	second := start(t, f)
	if got := second.Before(); got == nil || got.Kind != Stopped {
		t.Fatalf("after an orderly stop: got %+v", got)
	}
	second.End(errors.New("etcd:\n\tno space"))
	third := start(t, f)
	if got := third.Before(); got.Kind != Failed || !strings.Contains(got.Text, ": etcd: no space") {
		t.Fatalf("after an error: got %+v", got)
	}
	fourth := start(t, f) // third has not ended
	if got := fourth.Before(); got.Kind != Killed {
		t.Fatalf("after a kill: got %+v", got)
	}
	for _, file := range []string{f.Record(), f.Crash()} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: got %v and %v, want mode 0600", file, info, err)
		}
	}
}

// TestCrashIsKept holds that the trace of a crash outlives the next start.
func TestCrashIsKept(t *testing.T) {
	f := In(t.TempDir())
	start(t, f).Keep()
	if err := os.WriteFile(f.Crash(), []byte("panic: oh\n\ngoroutine 1 [running]:\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if end, err := f.Last(); err != nil || end.Kind != Running {
		t.Fatalf("got %+v and %v; the process runs", end, err)
	}
	next := start(t, f)
	if got := next.Before(); got.Kind != Crashed || !strings.HasSuffix(got.Text, ": panic: oh") {
		t.Errorf("got %+v, want the panic", got)
	}
	if kept, err := os.ReadFile(f.CrashBefore()); err != nil || !strings.HasPrefix(string(kept), "panic: oh") {
		t.Errorf("got %q and %v, want the trace", kept, err)
	}
}

// TestRecordFits holds that no text makes a record longer than its block.
func TestRecordFits(t *testing.T) {
	f := In(t.TempDir())
	r := start(t, f)
	r.Keep()
	r.mu.Lock()
	r.record.Before = &End{Text: line(strings.Repeat(`"`, 9000), mostText), Do: strings.Repeat("x", 200)}
	for i := range 100 {
		r.record.Memory.Kills[strings.Repeat("/group", 9)+string(rune('a'+i))] = 1
	}
	r.mu.Unlock()
	r.End(errors.New(strings.Repeat(`<\"`, 9000)))
	got, err := f.Read()
	if err != nil || got.EndedAt.IsZero() || got.Error == "" {
		t.Fatalf("got %+v and %v", got, err)
	}
	if info, err := os.Stat(f.Record()); err != nil || info.Size() != size {
		t.Errorf("got %v and %v, want %d bytes", info, err, size)
	}
}

// TestBrokenRecord holds that a record that cannot be read stops nothing.
func TestBrokenRecord(t *testing.T) {
	f := In(t.TempDir())
	if err := os.WriteFile(f.Record(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := start(t, f).Before(); got == nil || got.Kind != Unknown {
		t.Errorf("got %+v, want unknown", got)
	}
	if end, err := f.Last(); err != nil || end.Kind != Running {
		t.Errorf("got %+v and %v, want the record of this run", end, err)
	}
}

// TestNote holds that systemd's word is added to the record of a run that has ended, and
// to no other.
func TestNote(t *testing.T) {
	f := In(t.TempDir())
	if err := f.Note(Service{Result: "success"}); err != nil {
		t.Errorf("without a record: got %v", err)
	}
	r := start(t, f)
	r.Keep()
	if err := f.Note(Service{Result: "oom-kill"}); err != nil {
		t.Error(err)
	}
	if got, err := f.Read(); err != nil || got.Service != nil {
		t.Errorf("a run that goes on: got %+v and %v", got.Service, err)
	}
	r.change(func(c *Record) { c.Process = "0" }) // as if it had ended
	if err := f.Note(Service{At: time.Now(), Result: "oom-kill"}); err != nil {
		t.Error(err)
	}
	if end, err := f.Last(); err != nil || end.Kind != OutOfMemory {
		t.Errorf("got %+v and %v", end, err)
	}
}

// TestBeat holds that a sign of life is the file's time, and that the kernel's counters
// follow.
func TestBeat(t *testing.T) {
	f := In(t.TempDir())
	r := start(t, f)
	r.Keep()
	later := time.Now().Add(time.Hour).Truncate(time.Second)
	r.beat(later)
	if got, err := f.Read(); err != nil || !got.alive.Equal(later) {
		t.Errorf("got %v and %v, want %v", got.alive, err, later)
	}
	r.mu.Lock()
	r.record.Memory.Kills = map[string]uint64{machine: 1 << 60}
	r.mu.Unlock()
	r.beat(later)
	if got, err := f.Read(); err != nil || got.Memory.Kills[machine] == 1<<60 {
		t.Errorf("got %v and %v, want the counters of now", got.Memory.Kills, err)
	}
	for bytes, want := range map[uint64]uint64{2 << 30: 2 << 30, 2<<30 + 1<<20: 2 << 30, 0: 2 << 30} {
		r.needs(2 << 30)
		r.needs(bytes)
		if got, err := f.Read(); err != nil || got.Memory.Cluster != want {
			t.Errorf("needs %d: got %d and %v, want %d", bytes, got.Memory.Cluster, err, want)
		}
	}
	if got := start(t, f).NeededBefore(); got != 2<<30 {
		t.Errorf("the run before needed %d", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Beat(ctx, nil) // returns
}

// TestUnwritable holds that a run goes on without its record.
func TestUnwritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, In(dir))
	r.Keep()
	r.Ready()
	r.beat(time.Now())
}

// Root reads the record and the trace in a directory of kthwd's: a link there shows no other file,
// and a FIFO keeps nobody waiting.
func TestReadsNoFIFOAndNoLink(t *testing.T) {
	other, files := filepath.Join(t.TempDir(), "other"), In(t.TempDir())
	if err := os.WriteFile(other, []byte(`{"version":"secret","error":"secret"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(path string) error{
		"FIFO": func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link": func(path string) error { return os.Symlink(other, path) },
	} {
		for _, path := range []string{files.Record(), files.Crash()} {
			if err := put(path); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := files.Read(); err == nil {
			t.Errorf("%s: the record is %+v", name, r)
		}
		if e := files.gather(Record{}); e.crash != "" {
			t.Errorf("%s: the crash is %q", name, e.crash)
		}
		if err := errors.Join(os.Remove(files.Record()), os.Remove(files.Crash())); err != nil {
			t.Fatal(err)
		}
	}
}
