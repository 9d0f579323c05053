package backup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kthwd/appliance/archive"
	"kthwd/appliance/backup/keep"
	"kthwd/appliance/backup/step"
	"kthwd/appliance/backup/verify"
	"kthwd/appliance/datadir"
	"kthwd/test/harness"
)

// smallDisk mounts a file system on a new directory, with some room beyond what a small backup asks for.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "disk")
	must(t, os.Mkdir(dir, 0o700))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size=224m"); err != nil {
		t.Skipf("needs a file system that it may mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes all free space of the disk at dir.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, ".filler"))
	must(t, err)
	defer f.Close()
	for chunk, end := int64(32<<20), int64(0); chunk >= 4096; {
		switch err := unix.Fallocate(int(f.Fd()), 0, end, chunk); {
		case err == nil:
			end += chunk
		case errors.Is(err, unix.ENOSPC):
			chunk /= 2
		default:
			t.Fatal(err)
		}
	}
}

// fillAt fills the disk once, when a step begins.
func fillAt(t *testing.T, dir, at string) func(step.Event) {
	filled := false
	return func(e step.Event) {
		if e.Step == at && !filled {
			filled = true
			fill(t, dir)
		}
	}
}

func makeRoom(t *testing.T, dir string) {
	t.Helper()
	must(t, os.Remove(filepath.Join(dir, ".filler")))
}

// oneLine holds what an error about a full disk must be.
func oneLine(t *testing.T, err error) {
	t.Helper()
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "no space left on device") && !strings.Contains(err.Error(), "MB free") {
		t.Errorf("got %v, want one line about the full disk", err)
	}
	if _, damaged := errors.AsType[*archive.Damaged](err); damaged {
		t.Errorf("a full disk is called damage: %v", err)
	}
}

// TestCreateOnAFullDisk fills the disk while an archive is made: the one before stays, no other
// gets a name, and nothing remains.
func TestCreateOnAFullDisk(t *testing.T) {
	c, dir := newController(t, 1000), smallDisk(t)
	good := c.create(t, c.options(dir)).File
	check := func(t *testing.T) {
		t.Helper()
		makeRoom(t, dir)
		if left := names(t, dir); len(left) != 1 || left[0] != filepath.Base(good) {
			t.Errorf("left: %v, want %s", left, good)
		}
		must(t, archive.Check(good))
	}
	for _, at := range []string{step.Snapshot, step.Pack} {
		t.Run("in the step "+at, func(t *testing.T) {
			o := c.options(dir)
			if at == step.Snapshot { // what an older kthwd gives is written in this step
				o = older(o)["no copy"]
			}
			o.Report = fillAt(t, dir, at)
			_, err := Create(t.Context(), o)
			oneLine(t, err)
			check(t)
		})
	}
	t.Run("before the verification", func(t *testing.T) {
		o := c.options(dir)
		o.Checker = func(ctx context.Context, file, work string) *exec.Cmd {
			fill(t, dir)
			return checker(ctx, file, work)
		}
		_, err := Create(t.Context(), o)
		oneLine(t, err)
		check(t)
	})
	t.Run("before all", func(t *testing.T) {
		fill(t, dir)
		_, err := Create(t.Context(), c.options(dir))
		harness.CheckRefusal(t, err, "MB free, and ", "make room")
		check(t)
	})
}

// TestVerifyOnAFullDisk fills the disk while an archive is verified: that is no damage of the archive.
func TestVerifyOnAFullDisk(t *testing.T) {
	c, dir := newController(t, 1000), smallDisk(t)
	file := c.create(t, c.options(t.TempDir())).File
	for _, at := range []string{"", step.Extract, step.Restore, step.Read} {
		t.Run("in the step "+at, func(t *testing.T) {
			if at == "" {
				fill(t, dir)
			}
			_, err := verify.Verify(t.Context(), verify.Options{File: file, Dir: dir, Checker: checker, Report: fillAt(t, dir, at)})
			if err != nil || at == "" { // the child may have been quicker
				oneLine(t, err)
			}
			makeRoom(t, dir)
			if left := names(t, dir); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	must(t, archive.Check(file))
}

// TestKeepOnAFullDisk refuses an upgrade for whose copy the disk has no room, with the figures, before
// a byte is copied; the data are as they were.
func TestKeepOnAFullDisk(t *testing.T) {
	dir := smallDisk(t)
	o := stoppedControllerIn(t, dir)
	before := sums(t, o.Layout.Etcd())
	fill(t, dir)
	o.Opener = func(context.Context, string) *exec.Cmd { t.Error("a copy was opened"); return exec.Command("false") }
	_, err := keep.Keep(t.Context(), o)
	oneLine(t, err)
	harness.CheckRefusal(t, err, "a copy of the data from before the upgrade (etcd 3.6 to 3.7", "make room; or, with a copy elsewhere, start once with --copy-before-upgrade=false")
	if left := names(t, o.Layout.Kept()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if after := sums(t, o.Layout.Etcd()); !equal(before, after) {
		t.Errorf("the data have changed: %v, want %v", after, before)
	}
}

// TestRestoreOnAFullDisk fills the disk while a cluster is restored: nothing has changed, and
// with room it works.
func TestRestoreOnAFullDisk(t *testing.T) {
	c, dir := newController(t, 1000), smallDisk(t)
	file := c.create(t, c.options(t.TempDir())).File
	o := restoreOptions(t, file)
	o.Config.DataDir = filepath.Join(dir, "data")
	o.Config.EtcdDataDir = ""
	must(t, o.Config.Resolve())
	l := o.Config.Layout()
	for _, at := range []string{step.Extract, step.Restore, step.Read, step.Files} {
		t.Run("in the step "+at, func(t *testing.T) {
			o := o
			o.Report = fillAt(t, dir, at)
			r, err := BeginRestore(o)
			must(t, err)
			err = r.Run(t.Context())
			r.Close()
			makeRoom(t, dir)
			if err == nil {
				t.Fatal("a restore without room has worked")
			}
			oneLine(t, err)
			if !strings.Contains(err.Error(), "nothing has changed") || l.HasData() || datadir.Exists(l.CA()) || datadir.Exists(l.Restore()) {
				t.Errorf("got %v; in the directory: %v", err, names(t, l.Dir))
			}
		})
	}
	r, err := BeginRestore(o)
	must(t, err)
	defer r.Close()
	must(t, r.Run(t.Context()))
	checkRestored(t, o.Config, 1000)
}
