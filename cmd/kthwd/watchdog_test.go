package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kthwd/appliance/supervise"
)

// TestWatchdog checks when systemd is fed and when it is not, and that the stacks of a
// process that hangs are written before systemd's time limit.
func TestWatchdog(t *testing.T) {
	never := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for _, tt := range []struct {
		name  string
		alive func(context.Context) error
		feeds bool
	}{
		{"alive", func(context.Context) error { return nil }, true},
		{"an error", func(context.Context) error { return errors.New("etcd: disk") }, false},
		{"no answer in time", never, false},
		{"a question that hangs", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log, dump bytes.Buffer
				var fed atomic.Int64
				if tt.alive == nil {
					release := make(chan struct{})
					defer close(release)
					tt.alive = func(context.Context) error { <-release; return nil }
				}
				w := watchdog{limit: time.Minute, alive: tt.alive, log: slog.New(slog.NewTextHandler(&log, nil)), dump: &dump,
					feed: func() { fed.Add(1) }}
				life, end := context.WithCancel(t.Context())
				defer end()
				go w.run(life, life)
				time.Sleep(59 * time.Second)
				synctest.Wait()
				if got := fed.Load() > 0; got != tt.feeds {
					t.Errorf("fed %d times", fed.Load())
				}
				if got := strings.Contains(dump.String(), "goroutine "); got == tt.feeds {
					t.Errorf("goroutines written: %v", got)
				}
				if got := strings.Count(log.String(), "level=ERROR"); (got == 1) == tt.feeds {
					t.Errorf("log:\n%s", &log)
				}
			})
		})
	}
}

func TestWaitsOutside(t *testing.T) {
	ready := supervise.Status{State: supervise.Ready}
	waiting := supervise.Status{State: supervise.Waiting}
	starting := supervise.Status{State: supervise.Starting}
	for _, tt := range []struct {
		all  []supervise.Status
		want bool
	}{
		{nil, false},
		{[]supervise.Status{ready, waiting}, true},
		{[]supervise.Status{ready, starting, waiting}, false}, // the waiting component waits for the starting one
		{[]supervise.Status{ready}, false},
	} {
		if got := waitsOutside(tt.all); got != tt.want {
			t.Errorf("%v: got %v, want %v", tt.all, got, tt.want)
		}
	}
}

func TestSentence(t *testing.T) {
	for reason, want := range map[string]string{
		"etcd: waiting for etcd quorum (1 of 3)": "waiting for etcd quorum (1 of 3)",
		"etcd: opening /var/lib/kubernetes/etcd": "etcd: opening /var/lib/kubernetes/etcd",
		"ready":                                  "ready",
	} {
		if got := sentence(reason); got != want {
			t.Errorf("%q: got %q, want %q", reason, got, want)
		}
	}
}
