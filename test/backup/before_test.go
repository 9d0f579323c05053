package backup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/test/kthwtest"
)

// TestBackupBeforeSplit moves a controller to a CA of etcd's own: a verified archive with its
// keys is in the data directory before, the step says its name, and a further run makes no other.
// A backup that cannot be made leaves everything as it was.
func TestBackupBeforeSplit(t *testing.T) {
	dir, ports := filepath.Join(t.TempDir(), "shared"), kthwtest.FreePorts(t, "127.0.0.1")
	sharedCA(t, dir, ports)
	first := kthwtest.Start(t, kthwtest.Options{Dir: dir, Ports: &ports})
	first.WaitReady(t)
	kept := filepath.Join(dir, "kept", "before-split-etcd-ca")
	// A file in place of the directory: no backup can be made.
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, []string{"no backup was made, and nothing has changed", "--without-backup"}, "pki", "split-etcd-ca", "--config=", "--data-dir="+dir)
	if _, err := os.Stat(filepath.Join(dir, "etcd-ca.pem")); err == nil {
		t.Error("a step was taken without a backup")
	}
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	out := run(t, "pki", "split-etcd-ca", "--config=", "--data-dir="+dir)
	_, rest, _ := strings.Cut(out, "backup  ")
	file, _, _ := strings.Cut(rest, "  ")
	if filepath.Dir(file) != kept {
		t.Fatalf("no backup in %s:\n%s", kept, out)
	}
	for _, path := range []string{filepath.Dir(kept), kept} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want 0700", path, info, err)
		}
	}
	if got := run(t, "backup", "verify", file); !strings.Contains(got, "restored into a temporary etcd") {
		t.Errorf("the archive:\n%s", got)
	}
	if plan := run(t, "backup", "restore", file, "--config=", "--data-dir="+filepath.Join(t.TempDir(), "r"), "--plan"); !strings.Contains(plan, "a cluster of its own") {
		t.Errorf("the plan:\n%s", plan)
	}
	run(t, "pki", "split-etcd-ca", "--config=", "--data-dir="+dir)
	if all, err := os.ReadDir(kept); err != nil || len(all) != 1 {
		t.Errorf("after a further run: %v, %v; want one archive", all, err)
	}
	if report, err := first.Status(); err != nil || report.Backup != nil {
		t.Errorf("the last backup: %v, %v; want none, the archive is on the disk of the data", report.Backup, err)
	}
}

// sharedCA makes a data directory in which etcd uses the cluster's CA, as before it had its own.
func sharedCA(t *testing.T, dir string, ports kthwtest.Ports) {
	t.Helper()
	run(t, "pki", "init", "--config=", "--data-dir="+dir, "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports.Secure))
	for _, name := range []string{"etcd-ca.pem", "etcd-ca-key.pem", "etcd.pem", "etcd-key.pem"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}
