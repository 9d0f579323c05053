package upstream

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// lines returns a filter, a logger that writes to it, and the lines it lets through.
func lines(t *testing.T, level slog.Level, live context.Context) (*noiseFilter, *slog.Logger, func() []string) {
	t.Helper()
	var out bytes.Buffer
	f := newNoiseFilter(live, slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}), always("test"))
	return f, slog.New(f), func() []string {
		return strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	}
}

func TestRepeatsAreCounted(t *testing.T) {
	f, log, got := lines(t, slog.LevelInfo, context.Background())
	now := time.Unix(0, 0)
	f.repeats.now = func() time.Time { return now }
	for range 100 {
		log.Warn("apply request took too long")
	}
	log.Warn("another line")
	if n := len(got()); n != repeatBurst+1 {
		t.Fatalf("got %d lines of 100 equal ones and another; want %d", n, repeatBurst+1)
	}
	now = now.Add(repeatWindow)
	log.Warn("apply request took too long")
	if last := got()[repeatBurst+1]; !strings.Contains(last, "suppressed=97") {
		t.Errorf("got %q; want the number of lines left out, suppressed=97", last)
	}
}

func TestRepeatKindsAreBounded(t *testing.T) {
	r := &repeats{now: time.Now, seen: map[string]*window{}}
	for i := range 3 * repeatKinds {
		r.allow(strings.Repeat("x", i%7) + time.Duration(i).String())
	}
	if len(r.seen) > repeatKinds {
		t.Errorf("got %d kinds remembered; want at most %d", len(r.seen), repeatKinds)
	}
}

func TestRequestsAreNotDumped(t *testing.T) {
	_, log, got := lines(t, slog.LevelInfo, context.Background())
	log.Warn("apply request took too long", "took", "1s", "request", "key:secret", "response", "size:9", "request content", "key:secret")
	if line := got()[0]; strings.Contains(line, "secret") || strings.Contains(line, "response") || !strings.Contains(line, "took=1s") {
		t.Errorf("got %q; want the line without requests", line)
	}
	_, log, got = lines(t, slog.LevelDebug, context.Background())
	log.Warn("apply request took too long", "request", "key:secret")
	if line := got()[0]; !strings.Contains(line, "key:secret") {
		t.Errorf("at level debug: got %q; want the request in it", line)
	}
}

func TestExpectedLines(t *testing.T) {
	for _, e := range expectedLines {
		t.Run(e.message, func(t *testing.T) {
			if e.why == "" {
				t.Error("no reason given")
			}
			_, log, got := lines(t, slog.LevelInfo, context.Background())
			log.Error(e.message, "err", "before "+strings.ReplaceAll(e.about, "*", "j-1")+" after")
			if line := got()[0]; line != "" {
				t.Errorf("at level info: got %q; want nothing", line)
			}
			if e.about == "" {
				return
			}
			first, _, parts := strings.Cut(e.about, "*")
			others := []string{"something else"}
			if parts {
				others = append(others, first+"something else", first+`w" is forbidden: RBAC: clusterrole "something else" not found`)
			}
			for _, other := range others {
				log.Error(e.message, "err", other)
				if all := got(); !strings.Contains(all[len(all)-1], "something else") {
					t.Errorf("with another reason: got %q; want the line", all)
				}
			}
		})
	}
}

func TestLinesAfterTheEnd(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	_, log, got := lines(t, slog.LevelInfo, ctx)
	log.Error("before")
	end()
	log.Error("after")
	if all := strings.Join(got(), "\n"); !strings.Contains(all, "before") || strings.Contains(all, "after") {
		t.Errorf("got %q; want only the line from before the end", all)
	}
}
