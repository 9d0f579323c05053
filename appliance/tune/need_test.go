package tune

import (
	"bytes"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// TestNeed follows a cluster that grows and shrinks beneath a limit.
func TestNeed(t *testing.T) {
	empty, large := needOf(account{live: 100 * mib, beside: 40 * mib}), needOf(account{live: 1 * gib, beside: 80 * mib})
	if empty > 512*mib || large < gib*13/10 || large%needStep != 0 {
		t.Errorf("an empty cluster needs %d MiB, a large one %d", empty>>20, large>>20)
	}
	var log bytes.Buffer
	n := need{unit: "u", log: slog.New(slog.NewTextHandler(&log, nil))}
	began := time.Unix(1000, 0)
	for i, step := range []struct {
		needs, allowed uint64
		limited, want  bool
	}{
		{empty, 0, false, false}, // not known
		{empty, gib, true, false},
		{large, gib, true, true},
		{large, large + 1, true, true}, // not yet out of it
		{large, 2 * large, true, false},
		{large, gib, false, true},
		{large, large / 2, true, true},
	} {
		n.compare(step.needs, step.allowed, step.limited, began.Add(time.Duration(i)*time.Second))
		got := n.findings()
		if len(got) == 1 != step.want {
			t.Fatalf("step %d: got %v", i, got)
		}
		if !step.want {
			continue
		}
		number := "MemoryMax="
		if !step.limited {
			number = "more memory"
		}
		if !strings.Contains(got[0].Text, "needs 1.") || !strings.Contains(got[0].Do, number) {
			t.Errorf("step %d: %q, %q", i, got[0].Text, got[0].Do)
		}
	}
	if n.findings()[0].Since != began.Add(5*time.Second) || strings.Count(log.String(), "level=WARN") != 2 {
		t.Errorf("since %v, log %s", n.findings()[0].Since, log.String())
	}
}

// TestFollowLimit changes a control group's limit, as the process sees it, while it runs.
func TestFollowLimit(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	var log bytes.Buffer
	tuner := &Tuner{log: slog.New(slog.NewTextHandler(&log, nil)), limit: math.MaxInt64}
	for _, limit := range []uint64{math.MaxUint64, 8 * gib, 4 * gib, 4 * gib, math.MaxUint64} {
		tuner.followLimit(limit, limit)
		want := softLimit(limit)
		if got := debug.SetMemoryLimit(-1); limit != math.MaxUint64 && got != want {
			t.Errorf("limit %d: got %d, want %d", limit, got, want)
		}
	}
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("the limit is gone: got %d", got)
	}
	if n := strings.Count(log.String(), "has changed"); n != 3 {
		t.Errorf("%d changes are logged, want 3:\n%s", n, log.String())
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	tuner.followLimit(2*gib, 2*gib)
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("with GOMEMLIMIT: got %d", got)
	}
}

// TestNeedOfRunBefore holds that the number of the run before counts until this one is settled.
func TestNeedOfRunBefore(t *testing.T) {
	tuner := &Tuner{need: need{log: slog.New(slog.DiscardHandler)}}
	tuner.Needed(5 * gib)
	tuner.compareNeed(4*gib, 4*gib)
	if f := tuner.Findings(); len(f) != 1 || !strings.Contains(f[0].Text, "5.0 GiB") || tuner.Needs() != 0 {
		t.Errorf("at the start: %v, %d", f, tuner.Needs())
	}
	tuner.settled.Store(true)
	tuner.compareNeed(4*gib, 4*gib)
	if f := tuner.Findings(); len(f) != 0 || tuner.Needs() == 0 {
		t.Errorf("settled: %v, %d", f, tuner.Needs())
	}
}
