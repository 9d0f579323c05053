package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"kthwd/appliance/upgrade"
	"kthwd/test/kthwtest"
)

// begunVerb is a verb of kthwd upgrade in the middle of its steps.
type begunVerb struct {
	cmd    *exec.Cmd
	stderr strings.Builder
}

// untilStep starts a verb, and returns when it has said a step.
func untilStep(t *testing.T, c *kthwtest.Controller, step string, args ...string) *begunVerb {
	t.Helper()
	v := &begunVerb{}
	v.cmd = exec.CommandContext(t.Context(), kthwtest.Binary(t), append(append([]string{"upgrade"}, args...), "--config=", "--data-dir="+c.Dir)...)
	v.cmd.Stderr = &v.stderr
	out, err := v.cmd.StdoutPipe()
	if err == nil {
		err = v.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
		if strings.HasPrefix(lines.Text(), step+" ") {
			return v
		}
	}
	t.Fatalf("kthwd upgrade %v did not say %q: %v, %q\n%s", args, step, v.cmd.Wait(), said, v.stderr.String())
	return nil
}

// end waits for the verb.
func (v *begunVerb) end(t *testing.T) outcome {
	t.Helper()
	_ = v.cmd.Wait()
	return outcome{v.cmd.ProcessState.ExitCode(), typed(t, v.stderr.String())}
}

// brokenUpgrade is a controller whose upgrade is broken off again and again. Its member record and
// its etcd are on small disks of their own.
type brokenUpgrade struct {
	c          *kthwtest.Controller
	previous   string
	data, etcd string // the disks
	args       []string
	written    []string
	from, to   string
}

func (b *brokenUpgrade) start(t *testing.T, binary string) {
	t.Helper()
	b.c = again(t, b.c, kthwtest.Options{Binary: binary, Args: b.args})
}

func (b *brokenUpgrade) kill(t *testing.T) {
	t.Helper()
	b.c.Signal(t, syscall.SIGKILL)
	b.c.Wait(t, soon)
}

func (b *brokenUpgrade) write(t *testing.T, name string) {
	t.Helper()
	kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, b.c.Client(t), name) })
	storeSecrets(t, b.c.Client(t), name, 1)
	b.written = append(b.written, name)
}

// keeps requires every acknowledged write.
func (b *brokenUpgrade) keeps(t *testing.T) {
	t.Helper()
	for _, name := range b.written {
		kthwtest.WaitFor(t, name, soon, func() error { return has(t, b.c.Client(t), name) })
		readSecrets(t, b.c.Client(t), name, 1)
	}
}

// oldRefused requires that the old kthwd does not run on the data. Its guard leaves them as they
// are. Where the record does not know yet what etcd did last, its etcd refuses, which writes to its
// files before: the next start shows that this does no harm.
func (b *brokenUpgrade) oldRefused(t *testing.T, reasons ...string) {
	t.Helper()
	data, etcd := contents(t, b.c.Dir), contents(t, filepath.Join(b.etcd, "etcd"))
	old := again(t, b.c, kthwtest.Options{Binary: b.previous, Args: b.args, NoWait: true})
	code, log := old.Wait(t, soon), old.Log.String()
	if code != 1 || !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(log, r) }) {
		t.Errorf("the old kthwd: exit code %d, want 1 and one of %q:\n%s", code, reasons, old.Log.Tail(10))
	}
	if strings.Contains(log, "no way back") {
		sameContents(t, b.c.Dir, data)
		sameContents(t, filepath.Join(b.etcd, "etcd"), etcd)
	}
}

// says requires that kthwd upgrade status is in one of the stages and says what to type.
func (b *brokenUpgrade) says(t *testing.T, next string, stages ...upgrade.Stage) {
	t.Helper()
	kthwtest.WaitFor(t, "kthwd upgrade status to say "+next, soon, func() error {
		u, err := upgradeStatus(t, b.c)
		if err == nil && (!slices.Contains(stages, u.Stage) || !strings.Contains(strings.Join(u.Next, "\n"), next)) {
			err = fmt.Errorf("got stage %s, want one of %q; next %q", u.Stage, stages, u.Next)
		}
		return err
	})
}

// reached waits until the upgrade goes on, and etcd stores in its own format.
func (b *brokenUpgrade) reached(t *testing.T) {
	t.Helper()
	if u, err := upgradeStatus(t, b.c); err == nil && u.Target != "" {
		wantVerb(t, b.c, 0, []string{"cancel"}, "back", "--cancel")
	}
	stage(t, b.c, upgrade.StageReached, storesAsNew)
	emulates(t, b.c, b.from)
}

// One controller whose process is killed, and whose disks are full, at each step of the way back
// and of the end: the next start goes on, status says what to type, and nothing is lost.
func TestUpgradeKilled(t *testing.T) {
	endToEnd(t, "TestUpgradeAndBack")
	b := &brokenUpgrade{previous: kthwtest.Previous(t)}
	kthwtest.Turn(t, 1)
	b.data, b.etcd = tmpfs(t, "48m"), tmpfs(t, "256m")
	b.args = []string{"--etcd-data-dir=" + filepath.Join(b.etcd, "etcd"), "--copy-before-upgrade=false"}
	b.c = kthwtest.Start(t, kthwtest.Options{Dir: filepath.Join(b.data, "data"), Binary: b.previous, Args: b.args})
	b.from, b.to = minors(t, b.c)
	b.write(t, "by-old")
	stop(t, b.c, syscall.SIGTERM, 0)
	b.start(t, "")
	b.write(t, "by-new")
	b.reached(t)
	b.backUnwritten(t)
	b.cancelKilled(t)
	b.backKilled(t)
	b.finishKilled(t)
}

// backUnwritten: the verb is killed at its first step, and then the record has no room.
func (b *brokenUpgrade) backUnwritten(t *testing.T) {
	v := untilStep(t, b.c, "validate", "back")
	_ = v.cmd.Process.Kill()
	v.end(t)
	b.says(t, "kthwd upgrade back", upgrade.StageReached, upgrade.StageBack)

	filler := fill(t, b.data)
	code, out := verb(t, b.c, "upgrade", "back")
	outcome{code, out}.check(t, 1, "kthwd upgrade back goes on where it was", "c0 cannot write member.json", noSpace)
	b.says(t, "kthwd upgrade back", upgrade.StageBack)
	if _, out := verb(t, b.c, "upgrade", "status"); !strings.Contains(out, "cannot write member.json") {
		t.Errorf("kthwd upgrade status:\n%s", out)
	}
	if r := mustStatus(t, b.c); !findingSays(r, upgrade.Kind, "member.json cannot be written") {
		t.Errorf("the status: %+v", r.Findings)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	wantVerb(t, b.c, 0, []string{"record", "run the old kthwd again on c0"}, "back")
}

// cancelKilled: the process is killed as soon as etcd stores in the new format again, often before
// the record says so.
func (b *brokenUpgrade) cancelKilled(t *testing.T) {
	wantVerb(t, b.c, 0, []string{"cancel"}, "back", "--cancel")
	client := b.c.Etcd(t)
	kthwtest.WaitFor(t, "etcd to store in the new format", soon, func() error {
		s, err := client.Status(t.Context(), client.Endpoints()[0])
		if err == nil && !strings.HasPrefix(s.Version, strings.TrimSuffix(s.StorageVersion, "0")) {
			err = fmt.Errorf("got %s", s.StorageVersion)
		}
		return err
	})
	b.kill(t)
	b.oldRefused(t, "no way back", "is not supported", "invalid downgrade")
	b.start(t, "")
	b.reached(t)
	b.keeps(t)
}

// backKilled: the process is killed at each step of the way back, and dies of a full disk.
func (b *brokenUpgrade) backKilled(t *testing.T) {
	v := untilStep(t, b.c, "enable", "back")
	b.kill(t)
	v.end(t).check(t, 1, "start it: kthwd --role=controller", "the way back", "the last run: ")
	b.oldRefused(t, "no way back")
	b.start(t, "")
	b.says(t, "kthwd upgrade back", upgrade.StageBack)

	filler := fill(t, b.etcd)
	code, out := verb(t, b.c, "upgrade", "back")
	if code != 0 {
		outcome{code, out}.check(t, 1, "", "")
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for n := 0; !b.c.Exited() && ctx.Err() == nil; n++ {
		_ = writeBig(ctx, b.c.Client(t), fmt.Sprintf("big-%d", n))
	}
	outcome{b.c.Wait(t, soon), b.c.Log.String()}.check(t, 1, makeRoom, noSpace)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}

	for _, step := range []string{"stored", "record"} {
		b.start(t, "")
		b.says(t, "to go back: ", upgrade.StageBack)
		v := untilStep(t, b.c, step, "back")
		b.kill(t)
		v.end(t)
	}
	b.start(t, b.previous)
	b.keeps(t)
	b.write(t, "by-old-again")
	stop(t, b.c, syscall.SIGTERM, 0)
}

// finishKilled: the end is recorded in etcd and nowhere else when the process is killed, because
// there is no room; and it is killed once more when the verb says what comes next.
func (b *brokenUpgrade) finishKilled(t *testing.T) {
	b.start(t, "")
	b.reached(t)
	filler := fill(t, b.data)
	code, out := verb(t, b.c, "upgrade", "finish")
	outcome{code, out}.check(t, 1, "kthwd upgrade finish again", "the upgrade is finished", "c0 cannot write member.json", noSpace)
	b.kill(t)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	b.oldRefused(t, "no way back")
	b.start(t, "")
	emulates(t, b.c, b.from)
	b.says(t, "restart c0", upgrade.StageFinishing)
	v := untilStep(t, b.c, "next", "finish")
	b.kill(t)
	v.end(t)
	b.oldRefused(t, "no way back")
	b.start(t, "")
	stage(t, b.c, upgrade.StageNone, storesAsNew)
	emulates(t, b.c, b.to)
	b.keeps(t)
}

// Three controllers: the quorum is lost in the middle of the way back, controllers join while the
// old minor is emulated, and one comes back with the data from before an upgrade that is finished.
func TestUpgradeOfThreeBroken(t *testing.T) {
	endToEnd(t, "TestJudge, TestUpgradeAndBack")
	previous := kthwtest.Previous(t)
	kthwtest.Turn(t, 4)
	m := makeCluster(t, "--with-ca-key=c0")
	m.binary = previous
	all := m.startAll(t)
	from, _ := minorsOf(t, direct(t, all[0]))
	written := []string{"by-old"}
	kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, direct(t, all[0]), "by-old") })
	for _, c := range all {
		c.Signal(t, syscall.SIGTERM)
	}
	for _, c := range all {
		c.Wait(t, soon)
	}
	before := copyDir(t, all[2].Dir)
	m.awayDuringTheUpgrade(t, &all, previous)
	stage(t, all[0], upgrade.StageReached, func(c upgrade.Controller) bool { return storesAsNew(c) && c.Emulated == from && c.Unwell == "" })

	m.quorumLostOnTheWayBack(t, &all)
	m.joinEmulating(t, all[0], previous, from)
	for i, c := range all {
		name := fmt.Sprintf("by-new-%d", i)
		kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, direct(t, c), name) })
		written = append(written, name)
	}
	stage(t, all[1], upgrade.StageReached, func(c upgrade.Controller) bool { return storesAsNew(c) && c.Unwell == "" })
	wantVerb(t, all[1], 0, []string{"finished", "restart c0, then c1, then c2, then c4"}, "finish")

	m.oldAfterTheEnd(t, &all, before, previous)
	for _, name := range written {
		kthwtest.WaitFor(t, name, soon, func() error { return has(t, direct(t, all[2]), name) })
	}
}

// awayDuringTheUpgrade upgrades c0 and c1 while c2 is away, which then comes back as old as it was.
func (m *made) awayDuringTheUpgrade(t *testing.T, all *[3]*kthwtest.Controller, previous string) {
	t.Helper()
	m.binary = ""
	for i := range all[:2] {
		all[i] = m.start(t, i)
	}
	for _, c := range all[:2] {
		c.WaitReady(t)
	}
	saysNext(t, all[0], upgrade.StageReached, "start c2 again")
	wantVerb(t, all[0], 1, []string{"c2 does not answer"}, "finish")
	wantVerb(t, all[0], 1, []string{"nothing was changed", "c2 does not answer"}, "back")
	m.binary = previous
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
	saysNext(t, all[0], upgrade.StageRolling, "to go on: upgrade c2")
	m.replace(t, all, 2, "")
}

// saysNext requires that kthwd upgrade status is in the stage and says what to type.
func saysNext(t *testing.T, c *kthwtest.Controller, want upgrade.Stage, next string) {
	t.Helper()
	kthwtest.WaitFor(t, "kthwd upgrade status to say "+next, soon, func() error {
		u, err := upgradeStatus(t, c)
		if err == nil && (u.Stage != want || !strings.Contains(strings.Join(u.Next, "\n"), next)) {
			err = fmt.Errorf("got stage %s, want %s; next %q", u.Stage, want, u.Next)
		}
		return err
	})
}

// quorumLostOnTheWayBack kills two of three controllers when etcd's downgrade has just begun.
func (m *made) quorumLostOnTheWayBack(t *testing.T, all *[3]*kthwtest.Controller) {
	t.Helper()
	v := untilStep(t, all[0], "enable", "back")
	for _, c := range all[1:] {
		c.Signal(t, syscall.SIGKILL)
		c.Wait(t, soon)
	}
	v.end(t).check(t, 1, "kthwd upgrade back goes on where it was", "the way back is not ready", "etcd has no leader", "c1 does not answer", "c2 does not answer")
	u, err := upgradeStatus(t, all[0])
	if err != nil || u.Stage != upgrade.StageBack || !u.Leaderless || !strings.Contains(strings.Join(u.Next, "\n"), "etcd has no leader: start c1 and c2 again") {
		t.Errorf("without a quorum: got %+v, %v", u, err)
	}
	wantVerb(t, all[0], 1, []string{"etcd has no leader"}, "back")
	wantVerb(t, all[0], 1, []string{"etcd has no leader"}, "back", "--cancel")
	for i := range all[1:] {
		all[i+1] = m.start(t, i+1)
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	stage(t, all[0], upgrade.StageBack, func(c upgrade.Controller) bool { return c.Away == "" && c.Unwell == "" })
	wantVerb(t, all[0], 0, []string{"is enabled already", "run the old kthwd again on c0, then c1, then c2"}, "back")
	wantVerb(t, all[0], 0, []string{"cancel"}, "back", "--cancel")
	stage(t, all[0], upgrade.StageReached, storesAsNew)
}

// joinEmulating lets c4 join: the old kthwd is refused, and the new one emulates from its second
// start on.
func (m *made) joinEmulating(t *testing.T, c *kthwtest.Controller, previous, from string) {
	t.Helper()
	g := m.asGrowing(c)
	token := g.token(t, 4)
	old := exec.CommandContext(t.Context(), previous, g.joinArgs(t, 4, token)...)
	if out, err := old.CombinedOutput(); err == nil || !strings.Contains(string(out), "the minor versions must be the same") || !strings.Contains(string(out), "install the kthwd of the other controllers") {
		t.Errorf("the old kthwd joins: got %v:\n%s", err, out)
	}
	if code, out := g.join(t, 4, token); code != 0 {
		t.Fatalf("kthwd join: got exit code %d:\n%s", code, out)
	}
	first := g.start(t, 4)
	if code := first.Wait(t, soon); code != 1 || !strings.Contains(first.Log.String(), "start kthwd again") {
		t.Fatalf("the first start after the join: got exit code %d:\n%s", code, first.Log.Tail(20))
	}
	g.start(t, 4).WaitReady(t)
	stage(t, c, upgrade.StageReached, func(c upgrade.Controller) bool { return c.Emulated == from && c.Away == "" && c.Unwell == "" })
}

// oldAfterTheEnd starts c2 with the old kthwd on its data, and both on a copy from before the
// upgrade, of which etcd's leader knows that c2 had more. It joins anew.
func (m *made) oldAfterTheEnd(t *testing.T, all *[3]*kthwtest.Controller, before, previous string) {
	t.Helper()
	if etcdStatusOf(t, all[0]).Leader == "c2" {
		spaceRuns(t, all[0], "move-leader", "c0")
	}
	stop(t, all[2], syscall.SIGTERM, 0)
	dir := all[2].Dir
	is := contents(t, dir)
	ends := func(binary string, parts ...string) {
		t.Helper()
		m.binary = binary
		c := m.start(t, 2)
		if code := c.Wait(t, soon); code != 1 || slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(c.Log.String(), p) }) {
			t.Errorf("%s after the end: got exit code %d, want 1 and %q:\n%s", binary, code, parts, c.Log.Tail(10))
		}
	}
	ends(previous, "no way back")
	sameContents(t, dir, is)
	saysNext(t, all[0], upgrade.StageFinishing, "c2: start the new kthwd there")
	if err := errors.Join(os.RemoveAll(dir), os.Rename(before, dir)); err != nil {
		t.Fatal(err)
	}
	ends(previous, "out of range")
	ends("", "older than what this member has acknowledged", "kthwd join --replace-data here")
	m.joinAgain(t, all)
	stage(t, all[0], upgrade.StageFinishing, func(c upgrade.Controller) bool {
		return c.Restart == (c.Name != "c2") && c.Away == "" && c.Unwell == ""
	})
}

// joinAgain brings c2 back with nothing but its name.
func (m *made) joinAgain(t *testing.T, all *[3]*kthwtest.Controller) {
	t.Helper()
	if code, out := verb(t, all[0], "member", "remove", "c2"); code != 0 {
		t.Fatalf("kthwd member remove: got exit code %d:\n%s", code, out)
	}
	g := m.asGrowing(all[0])
	if code, out := g.join(t, 2, g.token(t, 2), "--replace-data"); code != 0 {
		t.Fatalf("kthwd join --replace-data: got exit code %d:\n%s", code, out)
	}
	all[2] = g.start(t, 2)
	all[2].WaitReady(t)
}

// asGrowing lets controllers join through c0.
func (m *made) asGrowing(c0 *kthwtest.Controller) *growing {
	return &growing{net: 71, dir: m.dir, ports: map[int]kthwtest.Ports{0: m.ports[0], 1: m.ports[1], 2: m.ports[2]}, c: map[int]*kthwtest.Controller{0: c0}}
}
