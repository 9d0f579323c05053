package backup

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

// TestStartOf35 starts kthwd on the data of an etcd 3.5, the first start of a newer minor:
// there is a copy of them, the keys are there, and a later start makes no other copy.
func TestStartOf35(t *testing.T) {
	first := kthwtest.Start(t, kthwtest.Options{})
	first.WaitReady(t)
	first.Signal(t, syscall.SIGTERM)
	first.Wait(t, kthwtest.Soon)
	dir := first.Dir // with all files, and with the data of another etcd from here on
	for _, gone := range []string{filepath.Join("etcd", "member"), "member.json"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	harness.Untar(t, filepath.Join(kthwtest.Root(), "appliance", "etcdfiles", "testdata", "etcd-3.5.tar.gz"), filepath.Join(dir, "etcd"))
	kept := func() []string {
		all, err := filepath.Glob(filepath.Join(dir, "kept", "before-upgrade-etcd-3.5-to-3.6-*"))
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
		t.Errorf("a key of etcd 3.5: %v, %v", answer, err)
	}
	c.Signal(t, syscall.SIGTERM)
	c.Wait(t, kthwtest.Soon)
	again := kthwtest.Start(t, kthwtest.Options{Dir: dir, Ports: &first.Ports})
	again.WaitReady(t)
	if after := kept(); len(after) != 1 || after[0] != all[0] {
		t.Errorf("after another start: %v, want %v", after, all)
	}
}
