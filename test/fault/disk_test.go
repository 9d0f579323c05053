package fault

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

func TestEtcdData(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	w := startWriters(t, c.Client(t), 4)
	w.until(t, 200)
	stop(t, c, syscall.SIGTERM, 0)
	w.stop()
	w.done.Wait()

	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, etcd string)
		hint  string
		parts []string
	}{
		{"database overwritten from its start", func(t *testing.T, etcd string) { scribble(t, filepath.Join(etcd, "member/snap/db"), 0, 64<<10) },
			"restore a snapshot", []string{"etcd: cannot use the data in ", "/etcd: "}},
		{"database overwritten in the middle", func(t *testing.T, etcd string) { scribble(t, filepath.Join(etcd, "member/snap/db"), 8<<10, 1<<20) },
			"restore a snapshot", []string{"etcd: cannot use the data in ", "/etcd: "}},
		{"database cut short", func(t *testing.T, etcd string) { truncate(t, filepath.Join(etcd, "member/snap/db"), 20<<10) },
			"restore a snapshot", []string{"etcd: cannot use the data in ", "/etcd: "}},
		{"write-ahead log overwritten from its start", func(t *testing.T, etcd string) { scribble(t, firstWAL(t, etcd), 0, 4<<10) },
			"restore a snapshot", []string{"etcd: cannot use the data in ", "/etcd: "}},
		{"write-ahead log overwritten in the middle", func(t *testing.T, etcd string) { scribble(t, firstWAL(t, etcd), 32<<10, 4<<10) },
			"restore a snapshot", []string{"etcd: cannot use the data in ", "/etcd: "}},
		{"database is a directory", func(t *testing.T, etcd string) { directory(t, filepath.Join(etcd, "member/snap/db")) },
			"restore a snapshot", []string{"etcd: cannot use the data in ", "/etcd: "}},
		{"foreign directory", func(t *testing.T, etcd string) { foreign(t, etcd) },
			"--etcd-data-dir", []string{"PG_VERSION", "not etcd's"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := attempt{dir: copyDir(t, c.Dir), ports: c.Ports}
			a.ports = kthwtest.FreePorts(t, "127.0.0.1")
			a.ports.Secure = c.Ports.Secure // the kubeconfigs name it; nothing listens before etcd is ready
			tt.spoil(t, filepath.Join(a.dir, "etcd"))
			before := contents(t, a.dir)
			a.run(t).check(t, 1, tt.hint, tt.parts...)
			sameContents(t, a.dir, before)
		})
	}
}

// scribble overwrites a part of a file with what no program has written.
func scribble(t *testing.T, path string, offset int64, length int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() < offset+int64(length) {
		t.Fatalf("%s is too short to be spoilt: %v", path, err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("\xde\xad\xbe\xef", length/4)), offset); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func directory(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
}

// foreign makes of etcd's directory what another program's looks like.
func foreign(t *testing.T, etcd string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(etcd), os.Mkdir(etcd, 0o700), os.WriteFile(filepath.Join(etcd, "PG_VERSION"), []byte("17\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func firstWAL(t *testing.T, etcd string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(etcd, "member/wal/*.wal"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no write-ahead log in %s: %v", etcd, err)
	}
	slices.Sort(found)
	return found[0]
}

// tmpfs is a file system of its own size.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	dir := t.TempDir()
	mountTmpfs(t, dir, size)
	return dir
}

func mountTmpfs(t *testing.T, dir, size string) {
	t.Helper()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "mode=0700,size="+size, "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

const noSpace, makeRoom = "no space left on device", "disk is full"

func TestDiskFullAtStart(t *testing.T) {
	kthwtest.Turn(t, 1)
	for _, size := range []string{"32k", "8m"} { // too small for the certificates, for the write-ahead log
		t.Run(size, func(t *testing.T) {
			dir := filepath.Join(tmpfs(t, size), "data")
			a := attempt{dir: dir, ports: kthwtest.FreePorts(t, "127.0.0.1")}
			a.run(t).check(t, 1, makeRoom, noSpace)
		})
	}
}

func TestDiskFullWhileRunning(t *testing.T) {
	kthwtest.Turn(t, 1)
	disk := tmpfs(t, "192m") // two pieces of the write-ahead log are 128 MB
	c := kthwtest.Start(t, kthwtest.Options{Dir: filepath.Join(disk, "data")})
	client := c.Client(t)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, configMap("before", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	filler := fill(t, disk)
	var acknowledged []string
	for n := 0; !c.Exited() && n < 2000; n++ {
		name := fmt.Sprintf("big-%d", n)
		if writeBig(ctx, client, name) == nil {
			acknowledged = append(acknowledged, name)
		}
	}
	code := c.Wait(t, soon)
	o := outcome{code, c.Log.String()}
	o.check(t, 1, makeRoom, noSpace)

	// With room again all is as it was acknowledged.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c = again(t, c, kthwtest.Options{})
	for _, name := range append(acknowledged, "before") {
		if _, err := c.Client(t).CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Errorf("an acknowledged write is lost: %v", err)
		}
	}
	t.Logf("%d writes were acknowledged after the disk was full", len(acknowledged))
}

// A stop that was asked for ends in order on a full disk too, although etcd can neither commit
// nor close its database.
func TestStopOnFullDisk(t *testing.T) {
	kthwtest.Turn(t, 1)
	disk := tmpfs(t, "192m")
	// The API server serves on for so long, and etcd longer: the test has time to fill the disk.
	const delay = "--kube-apiserver-arg=shutdown-delay-duration=15s"
	c := kthwtest.Start(t, kthwtest.Options{Dir: filepath.Join(disk, "data"), Args: []string{delay}})
	etcd := c.Etcd(t)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if _, err := etcd.Put(ctx, "/before", "1"); err != nil {
		t.Fatal(err)
	}
	filler := fill(t, disk)
	leaveRoom(t, filler, 1<<20) // or kthwd's own next write meets the full disk before the signal comes
	c.Signal(t, syscall.SIGTERM)
	kthwtest.WaitFor(t, "the stop to begin", soon, func() error {
		if !strings.Contains(c.Log.String(), "stopping all components") {
			return errors.New("not yet")
		}
		return nil
	})
	var acknowledged []string
	for n := 0; n < 400 && !c.Exited(); n++ { // etcd stops last
		key := fmt.Sprintf("/big/%d", n)
		put, end := context.WithTimeout(ctx, 2*time.Second)
		_, err := etcd.Put(put, key, strings.Repeat("x", 1<<20))
		late := put.Err() != nil // on a busy machine
		end()
		if err != nil && !late {
			break
		}
		if err == nil {
			acknowledged = append(acknowledged, key)
		}
	}
	if code := c.Wait(t, soon); code != 0 {
		t.Errorf("exit code: got %d, want 0", code)
	}
	if log := c.Log.String(); !strings.Contains(log, "stopping on a full disk: ") || !strings.Contains(log, noSpace) {
		t.Errorf("the log does not tell of the full disk:\n%s", c.Log.Tail(30))
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c = again(t, c, kthwtest.Options{})
	for _, key := range append(acknowledged, "/before") {
		if got, err := c.Etcd(t).Get(t.Context(), key); err != nil || got.Count != 1 {
			t.Errorf("an acknowledged write is lost: %s: %v", key, err)
		}
	}
	t.Logf("%d writes were acknowledged in the stop", len(acknowledged))
}

// fill writes a file until there is no room, and returns its name.
func fill(t *testing.T, disk string) string {
	t.Helper()
	path := filepath.Join(disk, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 4096); err == nil; {
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill %s: got %v, want %v", disk, err, syscall.ENOSPC)
	}
	return path
}

// leaveRoom makes a file that fills a disk shorter.
func leaveRoom(t *testing.T, filler string, bytes int64) {
	t.Helper()
	info, err := os.Stat(filler)
	if err == nil {
		err = os.Truncate(filler, info.Size()-bytes)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// writeBig writes what does not compress and does not fit into a page.
func writeBig(ctx context.Context, client kubernetes.Interface, name string) error {
	random := make([]byte, 100<<10)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := client.CoreV1().ConfigMaps("default").Create(ctx, configMap(name, map[string]string{"random": hex.EncodeToString(random)}), metav1.CreateOptions{})
	return err
}
