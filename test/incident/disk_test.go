package incident

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// C4: the disk below the data directory has no room, and gets it back. etcd's data are
// elsewhere: without room etcd would end the process at once.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system of its own")
	}
	t.Parallel()
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
}

// C5: every write to etcd's disk takes longer than a second, which etcd logs.
func TestSlowDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a file system of its own")
	}
	t.Parallel()
	mount := filepath.Join(t.TempDir(), "disk")
	disk := kthwtest.NewDisk(t, mount)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--etcd-data-dir=" + filepath.Join(mount, "etcd")}})
	t.Cleanup(disk.Thaw)
	kthwtest.WaitFor(t, "a finding about the disk", soon, func() error {
		disk.Stall(t)
		thawed := time.AfterFunc(2*time.Second, disk.Thaw)
		_, _ = c.Etcd(t).Put(t.Context(), "/incident/slow", "x") // which waits for the disk
		thawed.Stop()
		disk.Thaw()
		if _, err := find(c, slowDisk); err != nil {
			return err
		}
		if !strings.Contains(c.Log.String(), slowDisk.log) {
			return errors.New("the log lacks " + slowDisk.log)
		}
		return nil
	})
	look(t, c, slowDisk)
}

var slowDisk = incident{
	name: "C5 slow disk", kind: "fsync", cause: "the disk is too slow: leases and leadership may be lost", do: "with --etcd-data-dir", bridge: "-", log: "slow fdatasync",
}
