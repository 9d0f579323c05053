package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/backup/step"
	"kthwd/appliance/config"
	"kthwd/appliance/pki"
	"kthwd/appliance/status"
	"kthwd/test/harness"
)

// createChild is the child process of a schedule: kthwd backup create -o json.
func createChild(data, dir string) int {
	c := &controller{config: config.Default().Controller}
	c.config.DataDir, c.config.BindAddress, c.config.AdvertiseAddress = data, "127.0.0.1", "127.0.0.1"
	o := c.options(dir)
	if os.Getenv(olderRuns) != "" {
		o = older(o)["no copy"]
	}
	o.Report = mortal()
	made, err := Create(context.Background(), o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kthwd: error:", err)
		_ = json.NewEncoder(os.Stdout).Encode(answer{Failed: step.Of(err)})
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(made)
	return 0
}

// schedule runs one on a controller until the test ends.
func (c *controller) schedule(t *testing.T, every time.Duration, dir string) *Schedule {
	t.Helper()
	s := NewSchedule(ScheduleConfig{
		Every: every, Server: func() *embed.Etcd { return c.server }, Log: noLog,
		Create: func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, "/proc/self/exe", "create", c.config.DataDir, dir)
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func TestSchedule(t *testing.T) {
	c, dir := newController(t, 3), t.TempDir()
	s := c.schedule(t, time.Hour, dir)
	harness.WaitFor(t, "the first backup", time.Minute, func() error {
		if r := s.Report(); r == nil || r.File == "" {
			return fmt.Errorf("%+v, findings %v", r, s.Findings())
		}
		return nil
	})
	r := s.Report()
	if all := names(t, dir); len(all) != 1 || filepath.Join(dir, all[0]) != r.File || r.By != "c0" || r.Verified.IsZero() || len(s.Findings()) != 0 {
		t.Errorf("got %+v, findings %v, files %v", r, s.Findings(), all)
	}
	if n := testutil.CollectAndCount(s); n != 4+6+9 {
		t.Errorf("%d series", n)
	}
	if s.due(time.Now()) || !s.due(time.Now().Add(time.Hour)) || !s.due(time.Now().Add(-2*time.Hour)) {
		t.Error("the next one is due an hour later, or when the clock was wrong")
	}
	t.Run("another controller goes on", func(t *testing.T) {
		other := c.schedule(t, time.Hour, t.TempDir())
		harness.WaitFor(t, "the record", time.Minute, func() error {
			if other.Report() == nil || other.Report().File != r.File {
				return errors.New("not read")
			}
			return nil
		})
		if other.due(time.Now()) {
			t.Error("it would make one more")
		}
	})
	t.Run("an old one is a finding", func(t *testing.T) {
		value, err := json.Marshal(Record{At: time.Now(), File: r.File, Verified: time.Now().Add(-25 * time.Hour)})
		must(t, err)
		_, err = v3client.New(c.server.Server).Put(t.Context(), RecordKey, string(value))
		must(t, err)
		s.look(t.Context())
		if f := s.Findings(); len(f) != 1 || f[0].Kind != "backup_old" {
			t.Errorf("got %v", f)
		}
	})
}

// A backup that fails is a finding and a count, and leaves the archives of before.
func TestScheduleFails(t *testing.T) {
	c := newController(t, 1)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	s := c.schedule(t, time.Hour, file) // not a directory
	harness.WaitFor(t, "a failure", time.Minute, func() error {
		if len(s.Findings()) == 0 {
			return errors.New("none")
		}
		return nil
	})
	if f := s.Findings(); f[0].Kind != "backup_failed" || !strings.Contains(f[0].Text, file) {
		t.Errorf("got %v", f)
	}
	if s.due(time.Now()) || !s.due(time.Now().Add(retryAfter)) {
		t.Error("the next attempt comes after a pause")
	}
	value, err := json.Marshal(Record{At: time.Now(), File: file, Verified: time.Now().Add(time.Second)})
	must(t, err)
	_, err = v3client.New(c.server.Server).Put(t.Context(), RecordKey, string(value))
	must(t, err)
	s.look(t.Context())
	if f := s.Findings(); len(f) != 0 {
		t.Errorf("after a backup that a person has made: %v", f)
	}
}

// A last archive without the keys of CAs is advice, which names the controller that can make a
// complete one, until there is one. Without a schedule nothing is said.
func TestScheduleOfIncompleteArchives(t *testing.T) {
	c := newController(t, 1)
	l := c.config.Layout()
	server := func() *embed.Etcd { return c.server }
	s := NewSchedule(ScheduleConfig{Every: time.Hour, Layout: l, Server: server, Log: noLog})
	none := NewSchedule(ScheduleConfig{Layout: l, Server: server, Log: noLog})
	check := func(want ...string) {
		t.Helper()
		s.look(t.Context())
		none.look(t.Context())
		if all := none.Findings(); len(all) != 0 {
			t.Errorf("without a schedule: %v", all)
		}
		all := s.Findings()
		if len(want) == 0 {
			if len(all) != 0 {
				t.Errorf("got %v, want nothing", all)
			}
			return
		}
		if len(all) != 1 || all[0].Kind != "backup_keys" || all[0].Health != status.Healthy {
			t.Fatalf("got %v, want one advice", all)
		}
		for _, w := range want {
			if said := all[0].Text + ": " + all[0].Do; !strings.Contains(said, w) {
				t.Errorf("got %q, want %q", said, w)
			}
		}
	}
	check()
	complete := c.options(t.TempDir())
	c.create(t, complete)
	check()
	plain := complete
	plain.PlainKeys = false
	c.create(t, plain)
	check("ca-key.pem, etcd-ca-key.pem", "set backup-recipient")
	away := t.TempDir()
	move := func(from, to string) {
		for _, path := range []string{l.CAKey(), l.EtcdCAKey()} {
			must(t, os.Rename(filepath.Join(from, filepath.Base(path)), filepath.Join(to, filepath.Base(path))))
		}
	}
	move(l.Dir, away)
	c.create(t, complete)
	check("no key of the cluster's CA (ca-key.pem, etcd-ca-key.pem)", "on the controller that has them", "its schedule")
	move(away, l.Dir)
	check("this controller has them, and its schedule makes the next archive")
	c.create(t, complete)
	check()
}

// The controller with the keys of the CAs makes the backups before a leader without them does;
// two with the keys do not begin at once, and a learner makes none.
func TestTurnOfTheScheduleOfMany(t *testing.T) {
	with, without := pki.Layout{Dir: t.TempDir()}, pki.Layout{Dir: t.TempDir()}
	must(t, os.WriteFile(with.CAKey(), nil, 0o600))
	const learner = -1
	type turn struct {
		wait time.Duration
		ours bool
	}
	of := func(l pki.Layout, keys bool, number int, leads bool) turn {
		s := NewSchedule(ScheduleConfig{Every: time.Hour, Keys: keys, Layout: l})
		wait, ours := s.turn(number, leads)
		return turn{wait, ours}
	}
	at := turn{0, true}
	if got := of(with, true, 1, true); got != at {
		t.Errorf("a leader with the keys: got %v", got)
	}
	if got := of(without, false, 1, true); got != at {
		t.Errorf("a leader, where archives have no keys: got %v", got)
	}
	if got := of(with, false, 1, false); got.ours {
		t.Errorf("another one, where archives have no keys: got %v", got)
	}
	if got := of(without, true, 1, false); got.ours {
		t.Errorf("another one without the keys: got %v", got)
	}
	for _, leads := range []bool{true, false} {
		if got := of(with, true, learner, leads); got.ours {
			t.Errorf("a learner: got %v", got)
		}
	}
	first, second, last := of(with, true, 0, false), of(with, true, 2, false), of(without, true, 1, true)
	if !first.ours || !second.ours || !last.ours || first.wait <= 0 || second.wait <= first.wait || last.wait <= of(with, true, 7, false).wait {
		t.Errorf("got %v and %v with the keys, %v for a leader without", first, second, last)
	}
	must(t, os.WriteFile(with.EtcdCA(), nil, 0o600))
	if got := of(with, true, 1, true); got != last {
		t.Errorf("a leader that lacks the key of etcd's CA: got %v, want %v", got, last)
	}
	s := NewSchedule(ScheduleConfig{Every: time.Hour})
	if s.due(time.Now().Add(-first.wait)) || !s.due(time.Now()) {
		t.Error("the first backup must wait as well")
	}
}

func TestRunHook(t *testing.T) {
	dir := t.TempDir()
	script := func(text string) string {
		path := filepath.Join(dir, "hook")
		must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700))
		return path
	}
	made := Created{File: "/backup/c0.kthwd"}
	made.Verified.Manifest.Revision = 7
	out := filepath.Join(dir, "out")
	must(t, RunHook(t.Context(), script(`echo "$1 $KTHWD_BACKUP_FILE $KTHWD_BACKUP_REVISION" >`+out), made, time.Minute))
	if got, err := os.ReadFile(out); err != nil || string(got) != "/backup/c0.kthwd /backup/c0.kthwd 7\n" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := RunHook(t.Context(), script("echo no room >&2; exit 3"), made, time.Minute); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("one that fails: got %v", err)
	}
	if err := RunHook(t.Context(), script("sleep 600 & wait"), made, 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("one that hangs: got %v", err)
	}
}
