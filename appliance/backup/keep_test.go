package backup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/appliance/backup/keep"
	"kthwd/appliance/etcdfiles"
	"kthwd/appliance/pki"
	"kthwd/test/harness"
)

func opener(ctx context.Context, dir string) *exec.Cmd {
	return exec.CommandContext(ctx, "/proc/self/exe", "open", dir)
}

// stoppedController is a data directory with files, and the data of an etcd 3.6 that was killed.
func stoppedController(t *testing.T) keep.Options {
	t.Helper()
	return stoppedControllerIn(t, t.TempDir())
}

func stoppedControllerIn(t *testing.T, dir string) keep.Options {
	t.Helper()
	l := pki.Layout{Dir: dir}
	harness.Untar(t, filepath.Join("..", "etcdfiles", "testdata", "etcd-3.6.tar.gz"), l.Etcd())
	must(t, os.WriteFile(l.CAKey(), []byte("key"), 0o600))
	u, err := etcdfiles.FindUpgrade(l, etcdfiles.Versions("v0.1.0"))
	must(t, err)
	return keep.Options{Layout: l, Upgrade: *u, Opener: opener, Log: noLog}
}

// sums are the contents of the files below a directory.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = archiveSum(data)
		return err
	}))
	return all
}

func TestKeep(t *testing.T) {
	o := stoppedController(t)
	before := sums(t, filepath.Join(o.Layout.Etcd(), "member"))
	worked := 0
	o.Working = func() { worked++ }
	k, err := keep.Keep(t.Context(), o)
	must(t, err)
	if after := sums(t, filepath.Join(o.Layout.Etcd(), "member")); !equal(before, after) {
		t.Errorf("the data have changed: %v, want %v", after, before)
	}
	if copied := sums(t, filepath.Join(k.Dir, "etcd", "member")); !equal(before, copied) {
		t.Errorf("the copy: %v, want %v", copied, before)
	}
	if k.Revision != 48 || k.Again || worked == 0 { // 47 puts after revision 1
		t.Errorf("got %+v after %d calls of Working, want revision 48", k, worked)
	}
	if data, err := os.ReadFile(filepath.Join(k.Dir, "ca-key.pem")); string(data) != "key" {
		t.Errorf("ca-key.pem in the copy: %q, %v", data, err)
	}
	if info, err := os.Stat(o.Layout.Kept()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v; want 0700", info, err)
	}
	text, err := os.ReadFile(filepath.Join(k.Dir, "README"))
	for _, want := range []string{"etcd 3.6 to 3.7", "cp -a " + k.Dir + "/etcd/member", "revision 48", "holds private keys"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("README lacks %q: %s, %v", want, text, err)
		}
	}
	if left := names(t, o.Layout.Kept()); len(left) != 2 { // and the record
		t.Errorf("left: %v", left)
	}
	t.Run("a start that is repeated", func(t *testing.T) {
		again, err := keep.Keep(t.Context(), o)
		if err != nil || !again.Again || again.Dir != k.Dir {
			t.Errorf("got %+v, %v; want the first copy", again, err)
		}
	})
	t.Run("the newest two stay", func(t *testing.T) {
		for _, old := range []string{"kubernetes-1.35-to-1.36-20200101T000000Z", "etcd-3.5-to-3.6-20210101T000000Z"} {
			must(t, os.Mkdir(filepath.Join(o.Layout.Kept(), "before-upgrade-"+old), 0o700))
		}
		begun := filepath.Join(o.Layout.Kept(), ".kthwd-backup-before-upgrade-etcd-3.4-to-3.5-20190101T000000Z")
		must(t, os.MkdirAll(filepath.Join(begun, "etcd"), 0o700)) // a deletion that was cut off
		must(t, keep.ForgetUpgrade(o.Layout))
		must(t, os.Rename(k.Dir, filepath.Join(o.Layout.Kept(), "before-upgrade-"+"etcd-3.6-to-3.7-20220101T000000Z")))
		newest, err := keep.Keep(t.Context(), o)
		must(t, err)
		all, err := filepath.Glob(filepath.Join(o.Layout.Kept(), "before-upgrade-"+"*"))
		if err != nil || len(all) != 2 || newest.Again || !strings.Contains(strings.Join(all, " "), "20220101T000000Z") {
			t.Errorf("got %v, %v; want the new one and that of 2022", all, err)
		}
	})
}

func equal(a, b map[string]string) bool {
	for name := range a {
		if a[name] != b[name] {
			return false
		}
	}
	return len(a) == len(b) && len(a) > 0
}

// Keep refuses data that cannot be opened, and leaves nothing that looks like a copy.
func TestKeepRefuses(t *testing.T) {
	nothing := func(t *testing.T, o keep.Options) {
		t.Helper()
		if left := names(t, o.Layout.Kept()); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	}
	t.Run("damaged data", func(t *testing.T) {
		o := stoppedController(t)
		db := filepath.Join(o.Layout.Etcd(), "member", "snap", "db")
		data, err := os.ReadFile(db)
		must(t, err)
		for i := range data[4096*2:] {
			data[4096*2+i] ^= 0x55
		}
		must(t, os.WriteFile(db, data, 0o600))
		_, err = keep.Keep(t.Context(), o)
		harness.CheckRefusal(t, err, "cannot be opened, and they are as they were", "kthwd backup restore")
		nothing(t, o)
	})
	t.Run("interrupted", func(t *testing.T) {
		o := stoppedController(t)
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		o.Working = func() {
			if calls++; calls == 100 {
				cancel()
			}
		}
		if _, err := keep.Keep(ctx, o); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		nothing(t, o)
	})
	t.Run("a child that dies", func(t *testing.T) {
		o := stoppedController(t)
		o.Opener = func(ctx context.Context, _ string) *exec.Cmd { return exec.CommandContext(ctx, "false") }
		if _, err := keep.Keep(t.Context(), o); err == nil {
			t.Error("a copy was made that nothing has opened")
		}
		nothing(t, o)
	})
}
