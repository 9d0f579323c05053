package fault

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kthwd/test/kthwtest"
)

// recoverArgs are those of kthwd etcd recover on a data directory.
func recoverArgs(dir string, more ...string) []string {
	return append([]string{"etcd", "recover", "--config=", "--data-dir=" + dir}, more...)
}

// The last controller, with the two others lost for good, becomes a cluster of its
// own with all that was acknowledged.
func TestRecover(t *testing.T) {
	kthwtest.Turn(t, 3)
	k := newTrio(t)
	c0 := k.start(t, 0)
	kthwtest.WaitFor(t, "the first one to wait", soon, func() error { return waitsForQuorum(c0) })
	if strings.Contains(c0.Log.String(), "kthwd etcd recover") {
		t.Error("a controller that never had a quorum names kthwd etcd recover")
	}
	k.share(t)
	all := []*kthwtest.Controller{c0, k.start(t, 1), k.start(t, 2)}
	for _, c := range all {
		c.WaitReady(t)
	}
	leader, err := leaderOf(c0) // it has all that was acknowledged; another one may lag behind
	if err != nil {
		t.Fatal(err)
	}
	last := all[leader]
	w := startWriters(t, last.Client(t), 4)
	w.until(t, 200)
	for i, c := range all {
		if i != leader {
			c.Signal(t, syscall.SIGKILL)
		}
	}
	kthwtest.WaitFor(t, "the survivor to name the way out", soon, func() error {
		r, err := last.Status()
		if err == nil && (r.Quorum == nil || !strings.Contains(r.Quorum.Advice, "kthwd etcd recover")) {
			err = fmt.Errorf("quorum: %+v", r.Quorum)
		}
		return err
	})
	runToEnd(t, nil, recoverArgs(last.Dir, "--yes")...).check(t, 1, "stop that one first", "in use by another kthwd")
	begun := time.Now()
	stop(t, last, syscall.SIGTERM, 0)
	t.Logf("SIGTERM without a quorum: exit code 0 after %v", time.Since(begun).Round(10*time.Millisecond))
	last = k.start(t, leader)
	kthwtest.WaitFor(t, "the survivor to wait, and to name the way out again", soon, func() error {
		if !strings.Contains(last.Log.String(), "kthwd etcd recover") {
			return errors.New("not yet")
		}
		return waitsForQuorum(last)
	})
	stop(t, last, syscall.SIGTERM, 0)

	before := contents(t, last.Dir)
	runToEnd(t, nil, recoverArgs(last.Dir)...).check(t, 2, "--yes", "cannot ask for confirmation")
	sameContents(t, last.Dir, before)
	t.Run("disk too full", func(t *testing.T) { recoverOnAFullDisk(t, last.Dir) })
	killRecoveries(t, last.Dir)

	out, err := exec.Command(kthwtest.Binary(t), recoverArgs(last.Dir, "--yes")...).CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd etcd recover: %v\n%s", err, out)
	}
	t.Logf("kthwd etcd recover:\n%s", out)
	for _, want := range []string{"To go back, ", "\n  mv -T " + filepath.Join(last.Dir, "etcd", "member") + " "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("kthwd etcd recover does not say how to go back: want %q", want)
		}
	}
	last = k.start(t, leader)
	last.WaitReady(t)
	if r, err := last.Status(); err != nil || r.Quorum.Members != 1 {
		t.Errorf("quorum: got %+v %v, want one member", r.Quorum, err)
	}
	w.check(t, last.Client(t))
	kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, last.Client(t), "recovered") })
	back := k.start(t, (leader+1)%3)
	if code := back.Wait(t, soon); code != 1 || !strings.Contains(back.Log.String(), "was removed from the cluster") {
		t.Errorf("a given-up controller that comes back: got exit code %d, want 1 and that it was removed\n%s", code, back.Log.Tail(10))
	}
	stop(t, last, syscall.SIGTERM, 0)
	runToEnd(t, nil, recoverArgs(last.Dir, "--yes")...).check(t, 1, "start kthwd", "the only member of its cluster")
}

// killRecoveries kills kthwd etcd recover again and again, at any moment. What is in
// place must be the old data or the new ones; it stops when they are the new ones.
func killRecoveries(t *testing.T, dir string) {
	t.Helper()
	copied := copyDir(t, dir)
	old := contents(t, filepath.Join(copied, "etcd", "member"))
	killed, done := 0, false
	for i := 0; i < 15 && !done; i++ {
		cmd := exec.Command(kthwtest.Binary(t), recoverArgs(copied, "--yes")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.AfterFunc(time.Duration(30+rand.IntN(600))*time.Millisecond, func() { cmd.Process.Kill() })
		err := cmd.Wait()
		after.Stop()
		if err != nil && cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("kthwd etcd recover after %d kills: %v", killed, err)
		}
		if err != nil {
			killed++
		}
		if done = onlyMember(t, copied); !done {
			sameContents(t, filepath.Join(copied, "etcd", "member"), old)
		}
	}
	t.Logf("killed %d times, done: %v", killed, done)
	if !done {
		if out, err := exec.Command(kthwtest.Binary(t), recoverArgs(copied, "--yes")...).CombinedOutput(); err != nil {
			t.Fatalf("kthwd etcd recover after %d kills: %v\n%s", killed, err, out)
		}
	}
	if !onlyMember(t, copied) {
		t.Error("not recovered in the end")
	}
	kept, err := filepath.Glob(filepath.Join(copied, "etcd", ".before-recover-*", "member"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept: got %v %v, want the old data once", kept, err)
	}
	sameContents(t, kept[0], old)
}

// onlyMember tells whether the data are those of a recovered member, and fails the
// test when they are not whole.
func onlyMember(t *testing.T, dir string) bool {
	t.Helper()
	o := runToEnd(t, nil, recoverArgs(dir)...)
	switch {
	case o.code == 1 && strings.Contains(o.stderr, "the only member of its cluster"):
		return true
	case o.code == 2 && strings.Contains(o.stderr, "cannot ask for confirmation"):
		return false
	}
	t.Fatalf("the data are not whole: exit code %d\n%s", o.code, o.stderr)
	return false
}

// recoverOnAFullDisk tries it where the copy does not fit.
func recoverOnAFullDisk(t *testing.T, dir string) {
	small := tmpfs(t, "200m")
	from := filepath.Join(dir, "etcd")
	if err := os.CopyFS(filepath.Join(small, "etcd"), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	before := contents(t, small)
	runToEnd(t, nil, recoverArgs(dir, "--yes", "--etcd-data-dir="+filepath.Join(small, "etcd"))...).check(t, 1, "make room", "MB free")
	sameContents(t, small, before)
}
