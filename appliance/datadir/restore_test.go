package datadir

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/appliance/pki"
)

// TestFinishAfterABoot has a restore whose directories were exchanged before the machine was booted again:
// the device of the file system has another number now.
func TestFinishAfterABoot(t *testing.T) {
	l := pki.Layout{Dir: t.TempDir()}
	r := Restore{Files: filepath.Join(l.Dir, ".new"), Aside: filepath.Join(l.Dir, ".old"), Member: filepath.Join(l.Etcd(), ".stage", "member")}
	for _, dir := range []string{r.Files, r.Aside, r.Member, filepath.Join(l.Etcd(), "member")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	restored := filepath.Join(l.Etcd(), "member", "restored")
	if err := os.WriteFile(filepath.Join(r.Member, "restored"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(l); err != nil {
		t.Fatal(err)
	}
	if err := Exchange(filepath.Join(l.Etcd(), "member"), r.Member); err != nil {
		t.Fatal(err)
	}
	record, err := os.ReadFile(l.Restore())
	if err != nil {
		t.Fatal(err)
	}
	inode, err := Inode(filepath.Join(l.Etcd(), "member"))
	if err != nil {
		t.Fatal(err)
	}
	_, number, _ := strings.Cut(inode, ":")
	if err := os.WriteFile(l.Restore(), []byte(strings.Replace(string(record), inode, "999999:"+number, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if done, err := FinishRestore(l); !done || err != nil {
		t.Fatalf("done %v, %v", done, err)
	}
	if _, err := os.Stat(restored); err != nil {
		t.Errorf("the restored data: %v", err)
	}
}
