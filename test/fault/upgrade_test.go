package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/upgrade"
	"kthwd/test/kthwtest"
)

// upgraded is the answer of kthwd upgrade status -o json.
type upgraded struct {
	Stage upgrade.Stage `json:"stage"`
	upgrade.View
	Next []string `json:"next"`
}

// upgradeStatus asks a controller, and requires that the exit code is that of the answer.
func upgradeStatus(t *testing.T, c *kthwtest.Controller) (u upgraded, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), kthwtest.Binary(t), "upgrade", "status", "-o", "json", "--config=", "--data-dir="+c.Dir)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if jsonErr := json.Unmarshal(out, &u); jsonErr != nil {
		return u, fmt.Errorf("kthwd upgrade status: %w: %s", errors.Join(err, jsonErr), said.String())
	}
	if under := u.Stage != upgrade.StageNone; under != (err != nil) {
		t.Errorf("kthwd upgrade status: stage %s, and %v", u.Stage, err)
	}
	return u, nil
}

// stage waits until the cluster is in a stage and every controller as ok wants it.
func stage(t *testing.T, c *kthwtest.Controller, want upgrade.Stage, ok func(upgrade.Controller) bool) (u upgraded) {
	t.Helper()
	kthwtest.WaitFor(t, "the upgrade to be in stage "+string(want), soon, func() (err error) {
		if u, err = upgradeStatus(t, c); err != nil {
			return err
		}
		if u.Stage != want {
			return fmt.Errorf("got stage %s: %+v", u.Stage, u.View)
		}
		for _, c := range u.Controllers {
			if ok != nil && !ok(c) {
				return fmt.Errorf("got %+v", c)
			}
		}
		return nil
	})
	return u
}

// storesAsNew is a controller whose etcd stores in its own format, and which the old kthwd can
// no longer follow.
func storesAsNew(c upgrade.Controller) bool {
	return c.Storage != "" && strings.HasPrefix(c.Etcd, strings.TrimSuffix(c.Storage, "0")) && !c.MayGoBack && c.Away == ""
}

// wantVerb runs a verb of kthwd upgrade.
func wantVerb(t *testing.T, c *kthwtest.Controller, want int, parts []string, args ...string) string {
	t.Helper()
	code, out := verb(t, c, append([]string{"upgrade"}, args...)...)
	if code != want {
		t.Fatalf("kthwd upgrade %v: exit code %d, want %d:\n%s", args, code, want, out)
	}
	for _, part := range parts {
		if !strings.Contains(out, part) {
			t.Errorf("kthwd upgrade %v: %q is missing:\n%s", args, part, out)
		}
	}
	return out
}

// emulates requires the minors in the API server's /version.
func emulates(t *testing.T, c *kthwtest.Controller, want string) {
	t.Helper()
	v, err := c.Client(t).Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	if v.EmulationMajor+"."+v.EmulationMinor != want {
		t.Errorf("/version: got %+v, want the emulated minor %s", v, want)
	}
}

// refusesData requires that a kthwd does not start on a controller's data.
func refusesData(t *testing.T, binary string, c *kthwtest.Controller, want string) {
	t.Helper()
	before := contents(t, c.Dir)
	refused := again(t, c, kthwtest.Options{Binary: binary, NoWait: true})
	if code := refused.Wait(t, soon); code != 1 || !strings.Contains(refused.Log.String(), want) {
		t.Errorf("%s: exit code %d, want 1 and %q:\n%s", binary, code, want, refused.Log.Tail(10))
	}
	sameContents(t, c.Dir, before)
}

// minors are those of this kthwd and of the one before, as /version has them.
func minors(t *testing.T, old *kthwtest.Controller) (from, to string) {
	t.Helper()
	return minorsOf(t, old.Client(t))
}

func minorsOf(t *testing.T, old kubernetes.Interface) (from, to string) {
	t.Helper()
	v, err := old.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	from = v.Major + "." + v.Minor
	return from, strings.TrimSuffix(strings.TrimPrefix(minorFrom(t, from, 1), "v"), ".1")
}

// One controller on two minors of Kubernetes and etcd: up, back, up again, and the end.
func TestUpgradeAndBack(t *testing.T) {
	endToEnd(t, "TestJudge, TestEmulatingRecord")
	previous := kthwtest.Previous(t)
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Binary: previous})
	from, to := minors(t, c)
	keep := func(name string) {
		t.Helper()
		kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, c.Client(t), name) })
	}
	kept := func(names ...string) {
		t.Helper()
		for _, name := range names {
			kthwtest.WaitFor(t, name, soon, func() error { return has(t, c.Client(t), name) })
		}
	}
	run := func(binary string, sig syscall.Signal) {
		t.Helper()
		if !c.Exited() {
			stop(t, c, sig, map[syscall.Signal]int{syscall.SIGTERM: 0, syscall.SIGKILL: -1}[sig])
		}
		c = again(t, c, kthwtest.Options{Binary: binary})
	}
	keep("by-old")
	storeSecrets(t, c.Client(t), "old", 3)

	run("", syscall.SIGTERM)
	stage(t, c, upgrade.StageReached, storesAsNew)
	emulates(t, c, from)
	kept("by-old")
	readSecrets(t, c.Client(t), "old", 3)
	keep("by-new")
	storeSecrets(t, c.Client(t), "new", 3)
	stop(t, c, syscall.SIGTERM, 0)
	refusesData(t, previous, c, "no way back")
	run("", syscall.SIGTERM)
	stage(t, c, upgrade.StageReached, storesAsNew)
	emulates(t, c, from)

	wantVerb(t, c, 0, []string{"validate", "enable", "stored", "record", "run the old kthwd again on c0"}, "back")
	wantVerb(t, c, 0, []string{"is enabled already", "run the old kthwd again on c0"}, "back")
	wantVerb(t, c, 1, []string{"upgrade back --cancel"}, "finish")
	run("", syscall.SIGKILL)
	stage(t, c, upgrade.StageBack, func(c upgrade.Controller) bool { return c.MayGoBack })
	wantVerb(t, c, 0, []string{"cancel"}, "back", "--cancel")
	wantVerb(t, c, 1, []string{"no way back is under way"}, "back", "--cancel")
	stage(t, c, upgrade.StageReached, storesAsNew)
	keep("after-cancel")
	wantVerb(t, c, 0, []string{"enable"}, "back")

	run(previous, syscall.SIGTERM)
	kept("by-old", "by-new", "after-cancel")
	readSecrets(t, c.Client(t), "old", 3)
	readSecrets(t, c.Client(t), "new", 3)
	keep("by-old-again")

	run("", syscall.SIGTERM)
	kept("by-old", "by-new", "after-cancel", "by-old-again")
	if u, err := upgradeStatus(t, c); err == nil && u.Stage == upgrade.StageBack { // the old one had too little time to end it
		wantVerb(t, c, 0, nil, "back", "--cancel")
	}
	stage(t, c, upgrade.StageReached, storesAsNew)
	emulates(t, c, from)
	wantVerb(t, c, 0, []string{"finished", "restart c0"}, "finish")
	wantVerb(t, c, 0, []string{"finished"}, "finish")
	stage(t, c, upgrade.StageFinishing, nil)
	wantVerb(t, c, 1, []string{"the upgrade is finished", "before-upgrade-"}, "back")
	run("", syscall.SIGTERM)
	emulates(t, c, to)
	stage(t, c, upgrade.StageNone, storesAsNew)
	kept("by-old", "by-new", "by-old-again")
	wantVerb(t, c, 1, []string{"the upgrade is finished", "before-upgrade-"}, "back")
	stop(t, c, syscall.SIGTERM, 0)
	refusesData(t, previous, c, "no way back")
}
