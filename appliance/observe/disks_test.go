package observe

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/status"
)

func TestJudge(t *testing.T) {
	const gib = 1 << 30
	for _, tt := range []struct {
		name       string
		unit       string
		free, size uint64
		before     int
		want       int
	}{
		{"plenty", unitBytes, 50 * gib, 100 * gib, enough, enough},
		{"10 % of a large disk is enough", unitBytes, 100 * gib, 1000 * gib, enough, enough},
		{"scarce", unitBytes, 9 * gib, 100 * gib, enough, 2},
		{"low by number", unitBytes, 2 * gib, 1000 * gib, enough, 1},
		{"low by share", unitBytes, gib / 20, gib, enough, 1},
		{"full", unitBytes, 0, 100 * gib, enough, 0},
		{"a block is left", unitBytes, 4096, 100 * gib, 1, 0},
		{"a small disk is not full", unitBytes, 4 << 20, 10 << 20, enough, enough},
		{"stays low", unitBytes, 2*gib + gib/4, 1000 * gib, 1, 1},
		{"was scarce, is not low yet", unitBytes, 2*gib + gib/4, 1000 * gib, 2, 2},
		{"was low, is scarce", unitBytes, 3 * gib, 1000 * gib, 1, 2},
		{"over", unitBytes, 13 * gib, 1000 * gib, 1, enough},
		{"no inodes", unitInodes, 0, 1000, enough, 0},
		{"few inodes", unitInodes, 40, 1000, enough, 1},
		{"no limit on inodes", unitInodes, 0, 0, enough, enough},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := levelOf(tt.unit, tt.free, tt.size, tt.before); got != tt.want {
				t.Errorf("levelOf = %d; want %d", got, tt.want)
			}
		})
	}
}

func TestDiskFindings(t *testing.T) {
	all := []Use{Data, Etcd, Audit}
	for _, tt := range []struct {
		name   string
		level  int
		unit   string
		uses   []Use
		health status.Health
		text   string
	}{
		{"full", 0, unitBytes, all, status.Down, ": audit records are being lost; etcd stops at the first write that fails"},
		{"full, audit only", 0, unitBytes, []Use{Audit}, status.Degraded, ": audit records are being lost"},
		{"full, neither", 0, unitBytes, []Use{Data}, status.Degraded, "0 B free of 1.0 KiB"},
		{"full, backups only", 0, unitBytes, []Use{Backup}, status.Degraded, ": no backup is made"},
		{"low, backups only", 1, unitBytes, []Use{Backup}, status.Degraded, "without room no backup would be made"},
		{"low", 1, unitBytes, all, status.Degraded, "without room audit records would be lost and etcd would stop"},
		{"inodes", 0, unitInodes, all, status.Down, "0 inodes free of 1024: audit records are being lost"},
		{"scarce", 2, unitBytes, all, status.Healthy, "without room"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := findingAt(levels[tt.level], tt.unit, 0, 1024, t.TempDir(), tt.uses)
			if f.Health != tt.health || !strings.Contains(f.Text, tt.text) {
				t.Errorf("got %+v; want %s and %q", f, tt.health, tt.text)
			}
		})
	}
}

// A real file system loses its room and gets it back.
func TestDiskFills(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a file system")
	}
	dir := filepath.Join(t.TempDir(), "it's a disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,nr_inodes=100"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	place := Place{Path: filepath.Join(dir, "not", "there yet"), Use: Audit}
	d := newDisks([]Place{place, {Path: filepath.Join(dir, "archives"), Use: Backup}, {Path: filepath.Join(dir, "audit"), Use: Etcd}}, slog.New(slog.DiscardHandler))
	began := time.Now()
	measured := func() []status.Finding { d.measure(began); return d.findings() }

	if all := measured(); len(all) > 0 {
		t.Fatalf("before: %+v", all)
	}
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 9<<20), 0o600) // fails when the disk is full
	all := measured()
	if len(all) != 1 || all[0].Kind != kindFull || all[0].Health != status.Down || !all[0].Since.Equal(began) || !strings.Contains(all[0].Text, " 0 B free") {
		t.Fatalf("full: %+v", all)
	}
	out, err := exec.Command("sh", "-c", all[0].Do).CombinedOutput()
	if err != nil || !strings.Contains(string(out), dir) {
		t.Errorf("%s: %v\n%s", all[0].Do, err, out)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if all := measured(); len(all) > 0 {
		t.Errorf("after: %+v", all)
	}

	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|flags, "size=8m,nr_inodes=100"); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	all = measured()
	want := " is read-only: audit records are being lost; etcd stops at the first write that fails; no backup is made"
	if len(all) != 1 || all[0].Kind != "disk_read_only" || all[0].Health != status.Down || !all[0].Since.Equal(began) || !strings.HasSuffix(all[0].Text, want) {
		t.Fatalf("read-only: %+v", all)
	}
	_, command, _ := strings.Cut(all[0].Do, "; then: ")
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
	if all := measured(); len(all) > 0 {
		t.Errorf("after %s: %+v", command, all)
	}
}

// A file system that is away is asked once, and the others are not kept waiting.
func TestDiskThatIsAway(t *testing.T) {
	place := Place{Path: t.TempDir(), Use: Backup}
	d := newDisks([]Place{place, {Path: t.TempDir()}}, slog.New(slog.DiscardHandler))
	away := make(chan answer, 1)
	d.pending[place.Path] = away
	d.measure(time.Now())
	if _, asked := d.room[place.Path]; asked || len(d.room) != 1 || d.pending[place.Path] != away {
		t.Errorf("got %+v, pending %v", d.room, d.pending)
	}
	away <- answer{room{device: 7, free: 1 << 40, size: 1 << 40}, nil}
	d.measure(time.Now())
	if d.room[place.Path].device != 7 || len(d.pending) > 0 {
		t.Errorf("got %+v, pending %v", d.room, d.pending)
	}
}

func TestDescriptors(t *testing.T) {
	d := &descriptors{log: slog.New(slog.DiscardHandler)}
	d.count(time.Now())
	if d.open == 0 || d.limit == 0 {
		t.Errorf("counted %d of %d", d.open, d.limit)
	}
	for _, step := range []struct {
		open uint64
		want bool
	}{{79, false}, {80, true}, {75, true}, {69, false}, {79, false}} {
		d.compare(step.open, 100, time.Now())
		if got := len(d.findings()) == 1; got != step.want {
			t.Errorf("with %d of 100: finding %v", step.open, got)
		}
	}
}
