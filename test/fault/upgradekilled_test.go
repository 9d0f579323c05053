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

	"k8s.io/client-go/kubernetes"

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

// oldRefused requires that the guard of the old kthwd refuses the data, and leaves them as they are.
func (b *brokenUpgrade) oldRefused(t *testing.T) {
	t.Helper()
	data, etcd := contents(t, b.c.Dir), contents(t, filepath.Join(b.etcd, "etcd"))
	old := again(t, b.c, kthwtest.Options{Binary: b.previous, Args: b.args, NoWait: true})
	if code := old.Wait(t, soon); code != 1 || !strings.Contains(old.Log.String(), "no way back") {
		t.Errorf("the old kthwd: exit code %d, want 1 and its guard's words:\n%s", code, old.Log.Tail(10))
	}
	sameContents(t, b.c.Dir, data)
	sameContents(t, filepath.Join(b.etcd, "etcd"), etcd)
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
	kthwtest.LongTurn(t, 1)
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

// cancelKilled: the process is killed as soon as etcd stores in the new format again. The record
// refuses the old kthwd since before.
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
	b.oldRefused(t)
	b.start(t, "")
	b.reached(t)
	b.keeps(t)
}

// backKilled: the process is killed at each step of the way back, and dies of a full disk.
func (b *brokenUpgrade) backKilled(t *testing.T) {
	v := untilStep(t, b.c, "enable", "back")
	b.kill(t)
	v.end(t).check(t, 1, "start it: kthwd --role=controller", "the way back", "the last run: ")
	b.oldRefused(t)
	b.start(t, "")
	b.says(t, "kthwd upgrade back", upgrade.StageBack)

	filler := fill(t, b.etcd)
	code, out := verb(t, b.c, "upgrade", "back")
	if code != 0 {
		outcome{code, out}.check(t, 1, "", "")
	}
	diesOfFullDisk(t, b.c, b.c.Client(t))
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

// diesOfFullDisk writes until etcd of c, whose disk is full, has no room.
func diesOfFullDisk(t *testing.T, c *kthwtest.Controller, client kubernetes.Interface) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for n := 0; !c.Exited() && ctx.Err() == nil; n++ {
		_ = writeBig(ctx, client, fmt.Sprintf("big-%d", n))
	}
	outcome{c.Wait(t, soon), c.Log.String()}.check(t, 1, makeRoom, noSpace)
}

// finishWithoutRoom: etcd's disk is full, and kthwd has died of it, when the end is asked for.
func (b *brokenUpgrade) finishWithoutRoom(t *testing.T) {
	filler := fill(t, b.etcd)
	diesOfFullDisk(t, b.c, b.c.Client(t))
	wantVerb(t, b.c, 1, []string{"start it: kthwd --role=controller", "the last run: ", noSpace}, "finish")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	b.start(t, "")
	b.reached(t)
}

// finishKilled: the end is recorded in etcd, whose disk is full as well, and nowhere else when the
// process is killed, because there is no room; and it is killed once more when the verb says what
// comes next.
func (b *brokenUpgrade) finishKilled(t *testing.T) {
	b.start(t, "")
	b.reached(t)
	b.finishWithoutRoom(t)
	fillers := []string{fill(t, b.data), fill(t, b.etcd)}
	code, out := verb(t, b.c, "upgrade", "finish")
	recorded := strings.Contains(out, "the upgrade is finished")
	if b.c.Exited() { // etcd needed room at this moment
		t.Logf("etcd died while the end was recorded:\n%s", out)
	} else {
		outcome{code, out}.check(t, 1, "kthwd upgrade finish again", "the upgrade is finished", "c0 cannot write member.json", noSpace)
		b.kill(t)
	}
	for _, filler := range fillers {
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	b.oldRefused(t)
	b.start(t, "")
	emulates(t, b.c, b.from)
	if recorded {
		b.says(t, "restart c0", upgrade.StageFinishing)
	}
	v := untilStep(t, b.c, "next", "finish")
	b.kill(t)
	v.end(t)
	b.oldRefused(t)
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
	m.smallDisk(t, 1, "1g")
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

	m.quorumLostOnTheWayBack(t, &all, previous)
	m.joinEmulating(t, all[0], previous, from)
	for i, c := range all {
		name := fmt.Sprintf("by-new-%d", i)
		kthwtest.WaitFor(t, "a write", soon, func() error { return write(t, direct(t, c), name) })
		written = append(written, name)
	}
	stage(t, all[1], upgrade.StageReached, func(c upgrade.Controller) bool { return storesAsNew(c) && c.Unwell == "" })
	m.quorumLostAtTheEnd(t, &all)
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
	m.fullDiskWhileRolling(t, all, previous)
	m.replace(t, all, 2, "")
}

// smallDisk gives controller i a disk of its own.
func (m *made) smallDisk(t *testing.T, i int, size string) {
	t.Helper()
	dir := filepath.Join(m.dir, fmt.Sprintf("c%d", i))
	files := copyDir(t, dir)
	mountTmpfs(t, dir, size)
	if out, err := exec.Command("cp", "-a", files+"/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// fullDiskWhileRolling: the disk of c1 is full when it is new, and again when it is to become new. The
// others serve, and either kthwd runs on its data as soon as there is room.
func (m *made) fullDiskWhileRolling(t *testing.T, all *[3]*kthwtest.Controller, previous string) {
	t.Helper()
	stage(t, all[0], upgrade.StageRolling, func(c upgrade.Controller) bool { return c.Name != "c1" || c.MayGoBack })
	filler := fill(t, all[1].Dir)
	diesOfFullDisk(t, all[1], direct(t, all[0]))
	saysNext(t, all[0], upgrade.StageRolling, "start c1 again")
	wantVerb(t, all[0], 1, []string{"c1 does not answer"}, "finish")
	kthwtest.WaitFor(t, "a write without c1", soon, func() error { return write(t, direct(t, all[0]), "c1-is-full") })
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	m.binary = previous
	all[1] = m.start(t, 1)
	all[1].WaitReady(t)
	kthwtest.WaitFor(t, "what was written without c1", soon, func() error { return has(t, direct(t, all[1]), "c1-is-full") })

	stop(t, all[1], syscall.SIGTERM, 0)
	filler = fill(t, all[1].Dir)
	leaveRoom(t, filler, 8<<20) // not for the copy
	m.binary = ""
	refused := m.start(t, 1)
	outcome{refused.Wait(t, soon), refused.Log.String()}.check(t, 1, "make room", "a copy of the data from before the upgrade")
	saysNext(t, all[0], upgrade.StageRolling, "start c1 again")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	all[1] = m.start(t, 1)
	all[1].WaitReady(t)
	stage(t, all[0], upgrade.StageRolling, func(c upgrade.Controller) bool { return c.Old == (c.Name == "c2") && c.Away == "" && c.Unwell == "" })
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
func (m *made) quorumLostOnTheWayBack(t *testing.T, all *[3]*kthwtest.Controller, previous string) {
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
	m.quorumLostAtTheCancellation(t, all, previous)
	wantVerb(t, all[0], 0, []string{"is enabled already", "run the old kthwd again on c0, then c1, then c2"}, "back")
	wantVerb(t, all[0], 0, []string{"cancel"}, "back", "--cancel")
	stage(t, all[0], upgrade.StageReached, storesAsNew)
}

// quorumLostAtTheCancellation kills two of three controllers when every record refuses the old
// kthwd, and etcd is about to be told to go on.
func (m *made) quorumLostAtTheCancellation(t *testing.T, all *[3]*kthwtest.Controller, previous string) {
	t.Helper()
	v := untilStep(t, all[0], "record", "back", "--cancel")
	for _, c := range all[1:] {
		c.Signal(t, syscall.SIGKILL)
		c.Wait(t, soon)
	}
	v.end(t).check(t, 1, "kthwd upgrade back --cancel tries again", "etcd's downgrade may still be enabled", "etcd has no leader", "c1 does not answer", "c2 does not answer")
	m.binary = previous
	old := m.start(t, 1)
	if code := old.Wait(t, soon); code != 1 || !strings.Contains(old.Log.String(), "no way back") {
		t.Errorf("the old kthwd during the cancellation: got exit code %d, want 1 and its guard's words:\n%s", code, old.Log.Tail(10))
	}
	m.binary = ""
	for i := range all[1:] {
		all[i+1] = m.start(t, i+1)
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	stage(t, all[0], upgrade.StageBack, func(c upgrade.Controller) bool { return !c.MayGoBack && c.Away == "" && c.Unwell == "" })
}

// quorumLostAtTheEnd kills two of four controllers when the end has just been recorded.
func (m *made) quorumLostAtTheEnd(t *testing.T, all *[3]*kthwtest.Controller) {
	t.Helper()
	v := untilStep(t, all[1], "finished", "finish")
	killed := []int{0, 2}
	for _, i := range killed {
		all[i].Signal(t, syscall.SIGKILL)
		all[i].Wait(t, soon)
	}
	if o := v.end(t); o.code != 0 {
		t.Errorf("kthwd upgrade finish, the end of which is recorded: got exit code %d:\n%s", o.code, o.stderr)
	}
	saysNext(t, all[1], upgrade.StageFinishing, "etcd has no leader: start c0 and c2 again")
	for _, i := range killed {
		all[i] = m.start(t, i)
	}
	for _, c := range all {
		c.WaitReady(t)
	}
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
	mustRemove(t, all[0], "c2")
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
