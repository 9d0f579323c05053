package incident

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// C4: the disk below the data directory has no room, and gets it back. etcd's data are
// elsewhere: without room etcd would end the process at once.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system of its own")
	}
	kthwtest.Turn(t, 1)
	mount := filepath.Join(t.TempDir(), "disk")
	disk := kthwtest.NewDisk(t, mount)
	c := kthwtest.Start(t, kthwtest.Options{
		Dir: filepath.Join(mount, "data"), Args: []string{"--etcd-data-dir=" + filepath.Join(t.TempDir(), "etcd")},
	})
	noFinding(t, c, "disk_full")
	disk.Fill(t)
	f := finding(t, c, "disk_full", mount, " 0 B free of ", "audit records are being lost")
	if f.Health != status.Degraded || !strings.Contains(f.Do, "du ") {
		t.Errorf("got %+v; want health degraded, and a command that shows what is large", f)
	}
	look(t, c, incident{name: "C4 no space on the data disk", kind: "disk_full", cause: " 0 B free of ", do: "du -x -d1 -h ", bridge: "-"})
	if !strings.Contains(c.Log.String(), "audit records are being lost") {
		t.Error("the log does not say that audit records are being lost")
	}
	disk.MakeRoom(t)
	noFinding(t, c, "disk_full")
	disk.Fill(t)
	finding(t, c, "disk_full")
	stop(t, c)
}

// C5: every write to etcd's disk takes longer than a second, which etcd logs. The advice names the
// flag of the directory that is on that disk: etcd's own, or its log's.
func TestSlowDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system of its own")
	}
	t.Parallel()
	for flag, name := range map[string]string{"--etcd-data-dir": "etcd", "--etcd-arg=wal-dir": "log"} {
		t.Run(name, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			slow(t, flag, name)
		})
	}
}

// slow makes the disk slow that has the directory of a flag. The disk that stalls is the one below
// etcd's: a stall of etcd's own would hold up write, not fdatasync.
func slow(t *testing.T, flag, name string) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("memory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", at("memory"), "tmpfs", 0, ""); err != nil {
		t.Skipf("needs file systems that it may mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at("memory"), unix.MNT_DETACH) })
	disk := kthwtest.NewDiskIn(t, at("below"), at("memory"))
	kthwtest.NewDiskIn(t, at("disk"), at("below"))
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{flag + "=" + filepath.Join(at("disk"), name)}})
	t.Cleanup(disk.Thaw)
	client := c.Etcd(t)
	want := slowDisk
	want.do = "with " + flag + ","
	// The writes of the first minute do not count, because they are the start's own.
	kthwtest.WaitFor(t, "a finding about the disk", 3*soon, func() error {
		disk.Stall(t)
		thawed := time.AfterFunc(2*time.Second, disk.Thaw)
		_, _ = client.Put(t.Context(), "/incident/slow", "x") // which waits for the disk
		thawed.Stop()
		disk.Thaw()
		if _, err := find(c, want); err != nil {
			return err
		}
		if !strings.Contains(c.Log.String(), want.log) {
			return errors.New("the log lacks " + want.log)
		}
		return nil
	})
	if flag == "--etcd-data-dir" {
		look(t, c, want)
	}
	disk.Stall(t) // the stop finds it so
	time.AfterFunc(2*time.Second, disk.Thaw)
	stop(t, c)
}

var slowDisk = incident{
	name: "C5 slow disk", kind: "fsync", cause: "the disk is too slow: leases and leadership may be lost", do: "with --etcd-data-dir", bridge: "-", log: "slow fdatasync",
}
