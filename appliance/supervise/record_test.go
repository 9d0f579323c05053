package supervise

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// scripted is a component that the test controls step by step.
type scripted struct {
	name  string
	steps chan func(Reporter, func())
}

func newScripted(name string) *scripted {
	return &scripted{name, make(chan func(Reporter, func()))}
}

func (s *scripted) Name() string { return s.name }

func (s *scripted) Run(ctx context.Context, ready func()) error {
	for {
		select {
		case step := <-s.steps:
			step(Report(ctx), ready)
		case <-ctx.Done():
			return nil
		}
	}
}

// do makes the component take one step, and waits until all goroutines are blocked.
func (s *scripted) do(step func(r Reporter, ready func())) {
	s.steps <- step
	synctest.Wait()
}

func TestRecord(t *testing.T) {
	tests := []struct {
		name   string
		step   func(r Reporter, ready func())
		state  State
		ok     bool
		reason string // of Group.Ready
	}{
		{"starts", func(Reporter, func()) {}, Starting, false, "etcd: starting"},
		{"waits", func(r Reporter, _ func()) { r.Waiting("waiting for etcd quorum (1 of 3)") }, Waiting, false, "etcd: waiting for etcd quorum (1 of 3)"},
		{"ready for the first time", func(_ Reporter, ready func()) { ready() }, Ready, true, ""},
		{"loses what it had", func(r Reporter, _ func()) { r.Waiting("waiting for etcd quorum (1 of 3)") }, Waiting, false, "etcd: waiting for etcd quorum (1 of 3)"},
		{"ready again", func(r Reporter, _ func()) { r.Ready("") }, Ready, true, ""},
		{"standby", func(r Reporter, _ func()) { r.Standby("lease held by c1") }, Standby, true, ""},
		{"begins again", func(r Reporter, _ func()) {
			r.Restarted("lease_lost", errors.New("lease lost"))
			r.Starting("after: lease lost")
		}, Starting, false, "etcd: after: lease lost"},
		{"leads", func(r Reporter, _ func()) { r.Ready("leading") }, Ready, true, ""},
	}
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		c := newScripted("etcd")
		g.Add(c)
		r := run(g, log)
		for _, tt := range tests {
			time.Sleep(time.Second)
			c.do(tt.step)
			got := g.Status()[0]
			if got.State != tt.state {
				t.Errorf("%s: state: got %s, want %s", tt.name, got.State, tt.state)
			}
			if ok, reason := g.Ready(); ok != tt.ok || reason != tt.reason {
				t.Errorf("%s: Ready: got %v %q, want %v %q", tt.name, ok, reason, tt.ok, tt.reason)
			}
			wantRestart := ""
			if tt.name == "begins again" {
				wantRestart = "lease_lost"
			}
			if got.RestartReason != wantRestart {
				t.Errorf("%s: restart reason: got %q, want %q", tt.name, got.RestartReason, wantRestart)
			}
		}
		got := g.Status()[0]
		if got.Restarts != 1 || got.LastError != "lease lost" || got.Reason != "leading" {
			t.Errorf("got %+v, want 1 restart, last error kept, reason leading", got)
		}
		if got.Took != 3*time.Second {
			t.Errorf("took: got %v, want %v: the first ready counts", got.Took, 3*time.Second)
		}
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

func TestSinceIsWhenTheStateWasEntered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		c := newScripted("etcd")
		g.Add(c)
		r := run(g, log)
		time.Sleep(time.Second)
		c.do(func(r Reporter, _ func()) { r.Waiting("1 of 3") })
		entered := time.Now()
		time.Sleep(time.Second)
		c.do(func(r Reporter, _ func()) { r.Waiting("still 1 of 3") })
		if got := g.Status()[0]; !got.Since.Equal(entered) || got.Reason != "still 1 of 3" {
			t.Errorf("got since %v, reason %q; want %v, the new reason", got.Since, got.Reason, entered)
		}
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		c := newScripted("etcd")
		g.Add(c)
		r := run(g, log)
		closed := func(ch <-chan struct{}) bool {
			select {
			case <-ch:
				return true
			default:
				return false
			}
		}
		c.do(func(r Reporter, _ func()) { r.Waiting("x") })
		first, second := g.Changed(), g.Changed()
		c.do(func(r Reporter, _ func()) { r.Waiting("x") })
		if closed(first) {
			t.Error("closed, although the record says what it said before")
		}
		c.do(func(r Reporter, _ func()) { r.Waiting("y") })
		if !closed(first) || !closed(second) {
			t.Errorf("got closed %v and %v, want both after a change", closed(first), closed(second))
		}
		if closed(g.Changed()) {
			t.Error("the next channel is closed already")
		}
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

func TestNoChangeIsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		g.Add(d.server("b", 2*time.Second, 0), g.Add(d.server("a", time.Second, 0)))
		var seen []string
		watching, stopWatching := context.WithCancel(context.Background())
		go func() {
			for {
				changed := g.Changed()
				if s := states(g); len(seen) == 0 || seen[len(seen)-1] != s {
					seen = append(seen, s)
				}
				select {
				case <-changed:
				case <-watching.Done():
					return
				}
			}
		}()
		r := run(g, log)
		time.Sleep(time.Minute)
		r.stop()
		checkError(t, r.ended(t), "")
		stopWatching()
		synctest.Wait()
		all := strings.Join(seen, "\n")
		for _, want := range []string{"a=starting b=waiting", "a=ready b=starting", "a=ready b=ready", "a=stopped b=stopped"} {
			if !strings.Contains(all, want) {
				t.Errorf("got\n%s\nwant %s among them", all, want)
			}
		}
	})
}

func TestReadyNamesTheFirstThatIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		etcd := g.Add(d.server("etcd", time.Second, 0))
		g.Add(d.server("kcm", time.Second, time.Second), g.Add(d.server("api", time.Second, 0), etcd))
		r := run(g, log)
		for _, want := range []string{"etcd: starting", "api: starting", "kcm: starting", ""} {
			synctest.Wait()
			if ok, got := g.Ready(); got != want || ok != (want == "") {
				t.Errorf("at %v: got %v %q, want %q", time.Since(d.begun), ok, got, want)
			}
			time.Sleep(time.Second)
		}
		r.stop()
		synctest.Wait()
		if ok, got := g.Ready(); ok || got != "stopping" {
			t.Errorf("while it stops: got %v %q, want false %q", ok, got, "stopping")
		}
		time.Sleep(time.Minute)
		checkError(t, r.ended(t), "")
	})
}

func TestWaitingForIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		etcd, port := g.Add(d.server("etcd", time.Second, 0)), g.Add(d.server("port", time.Hour, 0))
		g.Add(d.server("kcm", 0, 0), etcd, port)
		r := run(g, log)
		synctest.Wait()
		if got, want := g.Status()[2].Reason, "waiting for etcd"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		time.Sleep(2 * time.Second)
		if got, want := g.Status()[2].Reason, "waiting for port"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

func TestTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		slow := g.Add(d.server("slow", 3*time.Second, 0))
		g.Add(d.server("quick", time.Second, 0))
		g.Add(d.server("last", 2*time.Second, 0), slow)
		g.Add(d.server("never", time.Hour, 0))
		r := run(g, log)
		time.Sleep(time.Minute)
		var got []string
		for _, s := range g.Timeline() {
			got = append(got, s.Name+" "+s.Took.String()+" "+s.ReadyAt.String())
		}
		if all, want := strings.Join(got, ", "), "quick 1s 1s, slow 3s 3s, last 2s 5s"; all != want {
			t.Errorf("got %s, want %s", all, want)
		}
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

// Only the group records the end of a component: a late report of the component does
// not change it.
func TestReporterAfterTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		var late Reporter
		g.Add(part{"kcm", func(ctx context.Context, ready func()) error {
			late = Report(ctx)
			ready()
			<-ctx.Done()
			late.Ready("leading")
			time.Sleep(time.Second)
			return nil
		}})
		r := run(g, log)
		synctest.Wait()
		r.stop()
		synctest.Wait()
		checkStates(t, g, "kcm=stopping")
		time.Sleep(time.Second)
		checkError(t, r.ended(t), "")
		late.Starting("once more")
		checkStates(t, g, "kcm=stopped")
	})
}

func TestReporterWithoutAGroup(t *testing.T) {
	r := Report(context.Background())
	r.Waiting("x")
	r.Starting("x")
	r.Standby("x")
	r.Ready("x")
	r.Restarted("failed", errors.New("x"))
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		c := newScripted("lb")
		g.Add(c)
		r := run(g, log)
		ctx, cancel := context.WithCancel(t.Context())
		var heard []string
		done := make(chan struct{})
		synctest.Wait()
		go func() {
			defer close(done)
			g.Follow(ctx, func(ready bool, reason string) { heard = append(heard, fmt.Sprint(ready, reason)) })
		}()
		synctest.Wait()
		c.do(func(_ Reporter, ready func()) { ready() })
		c.do(func(r Reporter, _ func()) { r.Waiting("x") })
		cancel()
		<-done
		if got, want := strings.Join(heard, " / "), "falselb: starting / true / falselb: x"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		r.stop()
		checkError(t, r.ended(t), "")
	})
}

// A budget that changes while the component runs applies to its stop.
func TestStopBudgetChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, log := newGroup()
		d := newDiary()
		n := g.Add(d.server("lb", 0, 20*time.Second)).StopWithin(time.Second)
		r := run(g, log)
		synctest.Wait()
		n.StopWithin(30 * time.Second)
		r.stop()
		time.Sleep(25 * time.Second)
		checkError(t, r.ended(t), "")
		checkStates(t, g, "lb=stopped")
	})
}
