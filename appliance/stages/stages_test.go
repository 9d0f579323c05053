package stages

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/test/etcdtest"
	"kthwd/test/harness"
)

var aKind = Kind{What: "the key", Command: "kthwd key", Prefix: "/kthwd/key/"}

// One controller acts at a time, and its state is not written once another one may act.
func TestHold(t *testing.T) {
	client := etcdtest.Client(t, etcdtest.Start(t, false))
	first, err := aKind.Take(t.Context(), client, "c0")
	if err != nil {
		t.Fatal(err)
	}
	if by, err := aKind.Holder(t.Context(), client); err != nil || by != "c0" {
		t.Errorf("got the holder %q, %v", by, err)
	}
	_, err = aKind.Take(t.Context(), client, "c1")
	if hint, _ := advice.Of(err); err == nil || !strings.HasSuffix(err.Error(), "the key is being carried on by c0") || !strings.Contains(hint, "kthwd key status") {
		t.Errorf("a second one: got %v, %q", err, hint)
	}
	var revision int64
	if err := first.Save(t.Context(), client, "a", &revision); err != nil || revision == 0 {
		t.Errorf("got %v, revision %d", err, revision)
	}
	stale := revision - 1
	if err := first.Save(t.Context(), client, "b", &stale); !errors.Is(err, ErrLost) {
		t.Errorf("a state that has changed: got %v", err)
	}
	first.Release()
	second, err := aKind.Take(t.Context(), client, "c1")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Release()
	if err := first.Save(t.Context(), client, "c", &revision); !errors.Is(err, ErrLost) {
		t.Errorf("without the right to act: got %v", err)
	}
}

// A Runner does one thing at a time, tells why it has stopped, and ends when it is halted, when its
// life does, and when it has lost the right to act.
func TestRunner(t *testing.T) {
	server := etcdtest.Start(t, false)
	r := NewRunner(RunnerConfig{Kind: aKind, Name: "c0", Log: slog.New(slog.DiscardHandler),
		Client: func() (*clientv3.Client, error) { return v3client.New(server.Server), nil }})
	begin := func(stage func(context.Context) error) error {
		return r.Act(t.Context(), func(context.Context, *clientv3.Client, *Hold) (Work, error) {
			return Work{What: "work", Stage: func(ctx context.Context, _ *clientv3.Client, _ *Hold) error { return stage(ctx) }}, nil
		})
	}
	untilItEnds := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	if err := begin(untilItEnds); err == nil {
		t.Error("it acts before its life")
	}
	life, die := context.WithCancel(t.Context())
	defer die()
	r.Live(life)
	refused := errors.New("refused")
	if err := r.Act(t.Context(), func(context.Context, *clientv3.Client, *Hold) (Work, error) { return Work{}, refused }); err != refused || r.Acting() {
		t.Errorf("what does not begin: got %v, acting %v", err, r.Acting())
	}
	if err := begin(untilItEnds); err != nil {
		t.Fatal(err)
	}
	if err := begin(untilItEnds); err == nil || !strings.Contains(err.Error(), "c0") {
		t.Errorf("a second one at once: got %v", err)
	}
	r.Idle(func() { t.Error("idle while it acts") })
	if err := r.Halt(t.Context()); err != nil || r.Acting() || !errors.Is(r.Stopped(), errHalted) {
		t.Errorf("halted: got %v, %v", err, r.Stopped())
	}
	idle := false
	if r.Idle(func() { idle = true }); !idle {
		t.Error("not idle after its end")
	}

	ended := func(why string, want error) {
		t.Helper()
		harness.WaitFor(t, why, time.Minute, func() error {
			if got := r.Stopped(); !errors.Is(got, want) {
				return fmt.Errorf("acting %v, stopped: %v", r.Acting(), got)
			}
			return nil
		})
	}
	if err := begin(untilItEnds); err != nil {
		t.Fatal(err)
	}
	if _, err := etcdtest.Client(t, server).Revoke(t.Context(), leaseOf(t, etcdtest.Client(t, server))); err != nil {
		t.Fatal(err)
	}
	ended("the loss of the right to act", ErrLost)
	failed := errors.New("failed")
	if err := begin(func(context.Context) error { return failed }); err != nil {
		t.Fatal(err)
	}
	ended("a stage that fails", failed)
	if err := begin(untilItEnds); err != nil {
		t.Fatal(err)
	}
	die()
	ended("the end of its life", context.Canceled)
}

// leaseOf is the lease of the controller that acts.
func leaseOf(t *testing.T, client *clientv3.Client) clientv3.LeaseID {
	t.Helper()
	answer, err := client.Get(t.Context(), aKind.HolderKey())
	if err != nil || len(answer.Kvs) == 0 {
		t.Fatalf("no holder: %v", err)
	}
	return clientv3.LeaseID(answer.Kvs[0].Lease)
}

// Each controller that cannot take part is named, and an advice that several have is given once.
func TestComplaints(t *testing.T) {
	type controller struct{ Answer }
	made := func(name string, err error) (c controller) {
		if c.Name = name; err != nil {
			c.Failed(err)
		}
		return c
	}
	if err := Complaints([]controller{made("c0", nil)}); err != nil {
		t.Errorf("without any: got %v", err)
	}
	full := advice.With(errors.New("disk full"), "make room")
	err := Complaints([]controller{made("c0", full), made("c1", nil), made("c2", full), made("c3", errors.New("away"))})
	if hint, _ := advice.Of(err); err == nil || err.Error() != "c0: disk full; c2: disk full; c3: away" || hint != "make room" {
		t.Errorf("got %v, %q", err, hint)
	}
}

// What keeps a change from going on is told to every controller, with the names of those that are late, until
// it goes on.
func TestStopped(t *testing.T) {
	server := etcdtest.Start(t, false)
	client := etcdtest.Client(t, server)
	runner := func(name string) *Runner {
		r := NewRunner(RunnerConfig{Kind: aKind, Name: name, Client: func() (*clientv3.Client, error) { return v3client.New(server.Server), nil }})
		r.Live(t.Context())
		return r
	}
	acts := func(r *Runner, stage func() error) {
		t.Helper()
		err := r.Act(t.Context(), func(context.Context, *clientv3.Client, *Hold) (Work, error) {
			return Work{What: "a change", Stage: func(context.Context, *clientv3.Client, *Hold) error { return stage() }}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		harness.WaitFor(t, "the end of the work", time.Minute, func() error {
			if r.Acting() {
				return errors.New("it acts")
			}
			return nil
		})
	}
	type controller struct{ Answer }
	c0, c1 := runner("c0"), runner("c1")
	acts(c0, func() error {
		return Complaints([]controller{{Answer{Name: "c0"}}, {Answer{Name: "c2", Error: "is away", Hint: "start c2"}}})
	})
	for _, r := range []*Runner{c0, c1} {
		if holder, err := r.Follow(t.Context(), client); holder != "" || err != nil || r.Why() != "c2: is away" || !slices.Equal(r.Late(), []string{"c2"}) {
			t.Errorf("%s: got %q, late %v, held by %q: %v", r.cfg.Name, r.Why(), r.Late(), holder, err)
		}
	}
	if _, stop, err := aKind.Acts(t.Context(), client); err != nil || stop == nil || stop.By != "c0" || stop.Hint != "start c2" {
		t.Errorf("got %+v, %v", stop, err)
	}
	acts(c1, func() error { // while it goes on, and afterwards, nobody is late
		holder, err := c0.Follow(t.Context(), client)
		if holder != "c1" || err != nil || c0.Why() != "" || c0.Late() != nil {
			t.Errorf("while c1 acts: got %q, late %v, held by %q: %v", c0.Why(), c0.Late(), holder, err)
		}
		return nil
	})
	for _, r := range []*Runner{c0, c1} {
		if _, err := r.Follow(t.Context(), client); err != nil || r.Why() != "" || r.Late() != nil {
			t.Errorf("%s, at the end: got %q, late %v: %v", r.cfg.Name, r.Why(), r.Late(), err)
		}
	}
}

// The metrics of a rotation bear its name, and are there without one.
func TestMetrics(t *testing.T) {
	m := aKind.Metrics()
	for since, want := range map[time.Time][]float64{{}: {0, 0}, time.Unix(1700000000, 0): {1700000000, 2}} {
		ch := make(chan prometheus.Metric, 2)
		m.Collect(ch, since, 2)
		for _, want := range want {
			var got dto.Metric
			if err := (<-ch).Write(&got); err != nil || got.GetGauge().GetValue() != want || got.GetLabel()[0].GetValue() != "key" {
				t.Errorf("got %v, want %v: %v", &got, want, err)
			}
		}
	}
}
