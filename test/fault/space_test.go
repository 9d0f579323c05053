package fault

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/etcdspace"
	"kthwd/appliance/program"
	"kthwd/test/kthwtest"
)

// spaceVerb is kthwd etcd with the arguments, for the controller's data directory.
func spaceVerb(t *testing.T, c *kthwtest.Controller, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), kthwtest.Binary(t), append(append([]string{"etcd"}, args...), "--config=", "--data-dir="+c.Dir)...)
}

// spaceRuns runs a verb that must succeed, and returns its standard output.
func spaceRuns(t *testing.T, c *kthwtest.Controller, args ...string) string {
	t.Helper()
	cmd := spaceVerb(t, c, args...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kthwd etcd %s: %v\n%s%s", strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

// spaceFails runs a verb that must end with code and say want.
func spaceFails(t *testing.T, c *kthwtest.Controller, code int, want string, args ...string) {
	t.Helper()
	cmd := spaceVerb(t, c, args...)
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
		t.Errorf("kthwd etcd %s: got %v, want exit code %d and %q:\n%s", strings.Join(args, " "), err, code, want, out)
	}
}

// loosen makes databases with gaps: keep keys of a MiB stay, and as many are deleted.
func loosen(t *testing.T, client *clientv3.Client, keep int) {
	t.Helper()
	value := strings.Repeat("x", 1<<20)
	for i := range 2 * keep {
		key := fmt.Sprintf("/registry/configmaps/fill/%d", i)
		kthwtest.WaitFor(t, "a write of a MiB", soon, func() error {
			_, err := client.Put(t.Context(), key, value)
			return err
		})
		if i%2 == 1 {
			if _, err := client.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// puts writes through the API without a pause, and tells the longest write and the failures.
type puts struct {
	stop    context.CancelFunc
	done    sync.WaitGroup
	longest time.Duration
	count   int
	failed  []string
}

func startPuts(t *testing.T, client kubernetes.Interface) *puts {
	t.Helper()
	p := &puts{}
	ctx, stop := context.WithCancel(t.Context())
	p.stop = stop
	maps := client.CoreV1().ConfigMaps("default")
	if _, err := maps.Create(ctx, configMap("puts", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.done.Go(func() {
		for ctx.Err() == nil {
			begun := time.Now()
			_, err := maps.Update(ctx, configMap("puts", map[string]string{"at": begun.String()}), metav1.UpdateOptions{})
			if ctx.Err() != nil {
				return
			}
			p.count++
			p.longest = max(p.longest, time.Since(begun))
			if err != nil {
				p.failed = append(p.failed, fmt.Sprintf("%v after %v: %v", begun.Format(time.TimeOnly), time.Since(begun), err))
			}
		}
	})
	t.Cleanup(func() { stop(); p.done.Wait() })
	return p
}

// end stops the writes.
func (p *puts) end() { p.stop(); p.done.Wait() }

// watchDefragmenting counts how often each controller says that it defragments, and the
// findings of a slow disk meanwhile.
func watchDefragmenting(t *testing.T, all []*kthwtest.Controller) (stop func() (seen map[string]int)) {
	seen := map[string]int{}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	var mu sync.Mutex
	for i, c := range all {
		done.Go(func() {
			for ctx.Err() == nil {
				r, err := c.Status()
				if err == nil && r.Member != nil && !r.Member.Defragmenting.IsZero() {
					mu.Lock()
					seen[fmt.Sprintf("c%d", i)]++
					for _, f := range r.Findings {
						seen[f.Kind]++
					}
					mu.Unlock()
				}
				select {
				case <-time.After(50 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); done.Wait() })
	return func() map[string]int { cancel(); done.Wait(); return seen }
}

// lostLeases counts the terms that have ended by themselves. The writes before a test may
// have cost some.
func lostLeases(t *testing.T, all []*kthwtest.Controller) (n int) {
	t.Helper()
	for _, c := range all {
		r, err := c.Status()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range r.Components {
			if s.Name == program.ControllerManager || s.Name == program.Scheduler {
				n += s.Restarts
			}
		}
	}
	return n
}

func etcdStatusOf(t *testing.T, c *kthwtest.Controller) (s etcdspace.Status) {
	t.Helper()
	out, err := spaceVerb(t, c, "status", "-o", "json").Output()
	if len(out) == 0 {
		t.Fatalf("kthwd etcd status: %v", err)
	}
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return s
}

// Three members are defragmented one after the other while a client writes through the
// balancer: no write fails, no lease is lost, and the status knows why a member does not
// answer. The same on one controller is the measure.
func TestSpaceOfThree(t *testing.T) {
	endToEnd(t, "TestOfThree is in make test")
	kthwtest.Turn(t, 4)
	const keep = 48 // MiB in use
	m := makeCluster(t)
	balancer := m.startPatientBalancer(t)
	all := m.startAll(t)
	balancer.WaitReady(t)
	alone := kthwtest.Start(t, kthwtest.Options{})
	loosen(t, all[0].Etcd(t), keep)
	loosen(t, alone.Etcd(t), keep)

	shown := spaceRuns(t, all[1], "space")
	for _, want := range []string{"MEMBER", "c2", "growth ", "not known yet", "configmaps", "fill", fmt.Sprintf("%d.0 MiB", keep)} {
		if !strings.Contains(shown, want) {
			t.Errorf("kthwd etcd space lacks %q:\n%s", want, shown)
		}
	}
	leader := etcdStatusOf(t, all[0]).Leader
	plan := spaceRuns(t, all[1], "space", "--fix", "--plan")
	if lines := strings.Split(strings.TrimSpace(plan), "\n"); len(lines) != 5 || !strings.HasPrefix(lines[3], "defragment "+leader+" ") || !strings.Contains(lines[3], "last, because it leads") {
		t.Errorf("the plan, with the leader %s:\n%s", leader, plan)
	}

	for _, c := range all {
		c.WaitReady(t)
	}
	before := lostLeases(t, all[:])
	writes := startPuts(t, all[0].Client(t))
	watched := watchDefragmenting(t, all[:])
	var fixed etcdspace.Fixed
	if err := json.Unmarshal([]byte(spaceRuns(t, all[1], "space", "--fix", "-o", "json")), &fixed); err != nil {
		t.Fatal(err)
	}
	writes.end()
	seen := watched()
	for i, f := range fixed.Members {
		if f.Took == 0 || f.After >= f.Before {
			t.Errorf("%s: got %d bytes of %d in %v", f.Name, f.After, f.Before, f.Took)
		}
		if seen[f.Name] == 0 {
			t.Errorf("%s never said that it defragments", f.Name)
		}
		if last := i == len(fixed.Members)-1; last != (f.Name == leader) {
			t.Errorf("the leader %s is not the last one of %v", leader, fixed.Members)
		}
	}
	if len(fixed.Members) != 3 || seen["etcd_defrag"] == 0 || seen["fsync"] > 0 {
		t.Errorf("members %v, findings meanwhile %v", fixed.Members, seen)
	}
	if len(writes.failed) > 0 {
		t.Errorf("%d of %d writes failed: %s", len(writes.failed), writes.count, strings.Join(writes.failed, "\n"))
	}
	for _, c := range all {
		c.WaitReady(t)
	}
	if lost := lostLeases(t, all[:]); lost != before {
		t.Errorf("%d leases were lost", lost-before)
	}

	lone := startPuts(t, alone.Client(t))
	spaceRuns(t, alone, "space", "--fix")
	lone.end()
	t.Logf("longest write through the balancer while three members defragment: %v of %d; on one controller: %v of %d", writes.longest, writes.count, lone.longest, lone.count)
}

// kthwd etcd status, snapshot and move-leader, with all members and with one gone.
func etcdVerbs(t *testing.T, m *made, all *[3]*kthwtest.Controller) {
	s := etcdStatusOf(t, all[0])
	if len(s.Members) != 3 || s.Leader == "" {
		t.Fatalf("got %+v", s)
	}
	for _, one := range s.Members {
		if one.State != etcdspace.StateOK || one.Size == 0 || one.Quota == 0 || one.Term == 0 || one.Index == 0 || one.Version == "" {
			t.Errorf("got %+v", one)
		}
	}

	next := (int(s.Leader[1]-'0') + 1) % 3
	spaceRuns(t, all[next], "move-leader", fmt.Sprintf("c%d", next))
	kthwtest.WaitFor(t, "the new leader", soon, func() error {
		if now := etcdStatusOf(t, all[0]).Leader; now != fmt.Sprintf("c%d", next) {
			return fmt.Errorf("%s leads", now)
		}
		return nil
	})
	spaceFails(t, all[next], 1, "leads already", "move-leader", fmt.Sprintf("c%d", next))
	spaceFails(t, all[next], 1, "has no member", "move-leader", "c9")

	file := filepath.Join(t.TempDir(), "etcd.db")
	spaceRuns(t, all[0], "snapshot", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the snapshot: %v, %v", info, err)
	}
	spaceFails(t, all[0], 1, "exists", "snapshot", file)
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	restore := snapshot.RestoreConfig{
		SnapshotPath: file, Name: "x", OutputDataDir: filepath.Join(t.TempDir(), "x"), PeerURLs: []string{"http://127.0.0.1:1"},
		InitialCluster: "x=http://127.0.0.1:1", InitialClusterToken: "x",
	}
	if err := snapshot.NewV3(zap.NewNop()).Restore(restore); err != nil {
		t.Errorf("etcdutl restores the snapshot: %v", err)
	}

	gone := (next + 1) % 3
	all[gone].Signal(t, syscall.SIGKILL)
	all[gone].Wait(t, soon)
	name := fmt.Sprintf("c%d", gone)
	spaceFails(t, all[next], 1, name+" does not answer", "status")
	spaceFails(t, all[next], 1, name+" does not answer", "move-leader", name)
	spaceFails(t, all[next], 1, "unhealthy: "+name, "space", "--fix")
	spaceFails(t, all[next], 1, "unhealthy: "+name, "space", "--fix", "--plan")
}

// A run that is killed at any of its steps, or whose member is, is continued by the next one.
func TestSpaceKilled(t *testing.T) {
	endToEnd(t, "TestOfThree is in make test")
	kthwtest.LongTurn(t, 3)
	m := makeCluster(t)
	all := m.startAll(t)
	for _, at := range []struct {
		step string
		nth  int
	}{{"compact ", 1}, {"defragment ", 1}, {"defragment ", 2}, {"defragment ", 3}} {
		loosen(t, all[0].Etcd(t), 8)
		killAt(t, spaceVerb(t, all[0], "space", "--fix"), at.step, at.nth)
	}
	spaceRuns(t, all[0], "space", "--fix")

	// The controller itself, in the middle.
	loosen(t, all[0].Etcd(t), 8)
	leader := etcdStatusOf(t, all[0]).Leader
	victim := (int(leader[1]-'0') + 1) % 3
	from := (victim + 1) % 3
	run := spaceVerb(t, all[from], "space", "--fix")
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, "the member to defragment", soon, func() error {
		r, err := all[victim].Status()
		if err == nil && (r.Member == nil || r.Member.Defragmenting.IsZero()) {
			err = fmt.Errorf("it does not")
		}
		return err
	})
	all[victim].Signal(t, syscall.SIGKILL)
	all[victim].Wait(t, soon)
	if err := run.Wait(); err == nil {
		t.Error("the run whose member was killed succeeded")
	}
	all[victim] = m.start(t, victim)
	all[victim].WaitReady(t)
	kthwtest.WaitFor(t, "the next run", soon, func() error {
		out, err := spaceVerb(t, all[from], "space", "--fix").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	for _, one := range etcdStatusOf(t, all[from]).Members {
		if one.State != etcdspace.StateOK || 4*one.Free() > one.Size {
			t.Errorf("after it: %+v", one)
		}
	}
}

// killAt kills a command when it says for the nth time that a step begins.
func killAt(t *testing.T, cmd *exec.Cmd, step string, nth int) {
	t.Helper()
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all []string
	for lines := bufio.NewScanner(said); lines.Scan(); {
		all = append(all, lines.Text())
		if strings.HasPrefix(lines.Text(), step) {
			nth--
		}
		if nth == 0 {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return
		}
	}
	t.Fatalf("it did not say %q so often: %v, %q", step, cmd.Wait(), all)
}

// Three members with the alarm about the quota: one run says what has filled them, and
// makes the cluster writable again.
func TestSpaceFullOnThree(t *testing.T) {
	endToEnd(t, "TestOfThree is in make test")
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	m.args = []string{fmt.Sprintf("--etcd-arg=quota-backend-bytes=%d", 48<<20)}
	all := m.startAll(t)
	client := all[0].Etcd(t)
	value := strings.Repeat("x", 1<<20)
	kthwtest.WaitFor(t, "etcd to refuse writes", soon, func() error {
		for {
			if _, err := client.Put(t.Context(), "/registry/events/noisy/a", value); err != nil {
				if strings.Contains(err.Error(), "space exceeded") {
					return nil
				}
				return err
			}
		}
	})
	spaceFails(t, all[1], 2, "NOSPACE", "space")
	spaceFails(t, all[1], 2, "NOSPACE", "status")
	out, err := spaceVerb(t, all[1], "space", "--fix").CombinedOutput()
	if err != nil {
		t.Fatalf("kthwd etcd space --fix: %v\n%s", err, out)
	}
	for _, want := range []string{"events", "noisy", "the database is full", "NOSPACE is off"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("kthwd etcd space --fix lacks %q:\n%s", want, out)
		}
	}
	if s := etcdStatusOf(t, all[2]); s.Full() {
		t.Errorf("the alarm is still on: %+v", s)
	}
	if _, err := client.Put(t.Context(), "/registry/events/noisy/a", value); err != nil {
		t.Errorf("a write after it: %v", err)
	}
	for _, c := range all {
		c.WaitReady(t)
	}
}

// A defragmentation that takes longer than systemd's watchdog allows is no reason to restart
// kthwd: an open copy of the database, as of a backup, keeps it from its end.
func TestSpaceWatchdog(t *testing.T) {
	endToEnd(t, "TestWatchdog of cmd/kthwd is in make test")
	kthwtest.Turn(t, 1)
	const limit = 10 * time.Second
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	var fed atomic.Int64
	go func() {
		for message := make([]byte, 4096); ; {
			n, err := systemd.Read(message)
			if err != nil {
				return
			}
			if strings.Contains(string(message[:n]), "WATCHDOG=1") {
				fed.Add(1)
			}
		}
	}()
	t.Cleanup(func() { systemd.Close() })
	c := kthwtest.Start(t, kthwtest.Options{Env: []string{"NOTIFY_SOCKET=" + socket, fmt.Sprintf("WATCHDOG_USEC=%d", limit.Microseconds())}})
	client := c.Etcd(t)
	loosen(t, client, 16)

	copied, stop := context.WithCancel(t.Context())
	defer stop()
	snapshot, err := client.Snapshot(copied)
	if err == nil {
		_, err = snapshot.Read(make([]byte, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := client.Defragment(t.Context(), client.Endpoints()[0])
		ended <- err
	}()
	locked := func() error {
		r, err := c.Status()
		if err == nil && (r.Member == nil || r.Member.Defragmenting.IsZero()) {
			err = errors.New("the member does not defragment")
		}
		return err
	}
	kthwtest.WaitFor(t, "the member to defragment", soon, locked)
	begun := fed.Load()
	// It is fed four times in each limit.
	kthwtest.WaitFor(t, "the watchdog fed for two of its limits", soon, func() error {
		if strings.Contains(c.Log.String(), "systemd will restart kthwd") {
			t.Fatal("systemd restarts kthwd")
		}
		if n := fed.Load() - begun; n < 8 {
			return fmt.Errorf("fed %d times", n)
		}
		return nil
	})
	if err := locked(); err != nil {
		t.Fatalf("it ended before: %v", err)
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(soon):
		t.Fatal("it does not end")
	}
	c.WaitReady(t)
}
