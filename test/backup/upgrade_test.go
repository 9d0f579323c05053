package backup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/appliance/etcdfiles"
	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

// stoppedOn starts kthwd once, stops it, and puts the data of another etcd in place of its own,
// with no record of them.
func stoppedOn(t *testing.T, data string) *kthwtest.Controller {
	t.Helper()
	first := kthwtest.Start(t, kthwtest.Options{})
	first.WaitReady(t)
	first.Signal(t, syscall.SIGTERM)
	first.Wait(t, kthwtest.Soon)
	for _, gone := range []string{filepath.Join("etcd", "member"), "member.json"} {
		if err := os.RemoveAll(filepath.Join(first.Dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	harness.Untar(t, filepath.Join(kthwtest.Root(), "appliance", "etcdfiles", "testdata", data), filepath.Join(first.Dir, "etcd"))
	return first
}

// TestStartOf35 starts kthwd on the data of an etcd 3.5: they are refused, as they were.
func TestStartOf35(t *testing.T) {
	first := stoppedOn(t, "etcd-3.5.tar.gz")
	c := kthwtest.Start(t, kthwtest.Options{Dir: first.Dir, Ports: &first.Ports, NoWait: true})
	if code := c.Wait(t, kthwtest.Soon); code != 1 {
		t.Errorf("got exit code %d, want 1", code)
	}
	for _, want := range []string{"is of etcd 3.5.0", "a minor must not be skipped", "run etcd 3.6 on every member first"} {
		if log := c.Log.String(); !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
	if _, err := os.Stat(filepath.Join(first.Dir, "kept")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a copy of refused data: %v", err)
	}
	b, err := etcdfiles.ReadBackend(filepath.Join(first.Dir, "etcd", "member"))
	if err != nil || b.Storage != "" {
		t.Errorf("the data are of storage version %q, %v; want as they were", b.Storage, err)
	}
}

// TestStartOf36 starts kthwd on the data of an etcd 3.6, the first start of a newer minor:
// there is a copy of them, the keys are there, and a later start makes no other copy.
func TestStartOf36(t *testing.T) {
	first := stoppedOn(t, "etcd-3.6.tar.gz")
	dir := first.Dir
	kept := func() []string {
		all, err := filepath.Glob(filepath.Join(dir, "kept", "before-upgrade-etcd-3.6-to-3.7-*"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	c := kthwtest.Start(t, kthwtest.Options{Dir: dir, Ports: &first.Ports})
	c.WaitReady(t)
	all := kept()
	if len(all) != 1 {
		t.Fatalf("got the copies %v, want one\n%s", all, c.Log.Tail(30))
	}
	for _, name := range []string{"README", "ca-key.pem", "etcd/member/snap/db", "etcd/member/wal/0000000000000000-0000000000000000.wal"} {
		if _, err := os.Stat(filepath.Join(all[0], name)); err != nil {
			t.Error(err)
		}
	}
	if log := c.Log.String(); !strings.Contains(log, all[0]) {
		t.Errorf("the log does not name %s", all[0])
	}
	answer, err := c.Etcd(t).Get(t.Context(), "/registry/a47")
	if err != nil || len(answer.Kvs) != 1 || string(answer.Kvs[0].Value) != "v47" {
		t.Errorf("a key of etcd 3.6: %v, %v", answer, err)
	}
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, kthwtest.Soon)
	again := kthwtest.Start(t, kthwtest.Options{Dir: dir, Ports: &first.Ports})
	again.WaitReady(t)
	if after := kept(); len(after) != 1 || after[0] != all[0] {
		t.Errorf("after another start: %v, want %v", after, all)
	}
}
