package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func newLogs(t testing.TB, format string, levels ...string) (*Logs, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	logs, err := New(&out, format, levels)
	if err != nil {
		t.Fatal(err)
	}
	return logs, &out
}

// atNoon gives records a fixed time, so that whole lines can be compared.
type atNoon struct{ slog.Handler }

func (h atNoon) Handle(ctx context.Context, r slog.Record) error {
	r.Time = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	return h.Handler.Handle(ctx, r)
}
func (h atNoon) WithAttrs(a []slog.Attr) slog.Handler { return atNoon{h.Handler.WithAttrs(a)} }
func (h atNoon) WithGroup(g string) slog.Handler      { return atNoon{h.Handler.WithGroup(g)} }

func TestLines(t *testing.T) {
	tests := []struct {
		name                 string
		log                  func(*slog.Logger)
		text, json, terminal string
	}{{
		name:     "plain",
		log:      func(l *slog.Logger) { l.Info("ready", "took", 2*time.Second) },
		text:     `time=2026-01-02T12:00:00.000Z level=INFO component=etcd msg=ready took=2s`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"INFO","msg":"ready","component":"etcd","took":2000000000}`,
		terminal: `12:00:00.000 INFO  etcd                    ready took=2s`,
	}, {
		name:     "quoted",
		log:      func(l *slog.Logger) { l.Error("two words\nand a line", "err", errors.New(`open "x"`)) },
		text:     `time=2026-01-02T12:00:00.000Z level=ERROR component=etcd msg="two words\nand a line" err="open \"x\""`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"ERROR","msg":"two words\nand a line","component":"etcd","err":"open \"x\""}`,
		terminal: `12:00:00.000 ERROR etcd                    "two words\nand a line" err="open \"x\""`,
	}, {
		name:     "verbosity",
		log:      func(l *slog.Logger) { l.Log(context.Background(), slog.Level(-2), "list") },
		text:     `time=2026-01-02T12:00:00.000Z level=V2 component=etcd msg=list`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"V2","msg":"list","component":"etcd"}`,
		terminal: `12:00:00.000 V2    etcd                    list`,
	}, {
		name:     "debug",
		log:      func(l *slog.Logger) { l.Debug("list") },
		text:     `time=2026-01-02T12:00:00.000Z level=DEBUG component=etcd msg=list`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"DEBUG","msg":"list","component":"etcd"}`,
		terminal: `12:00:00.000 DEBUG etcd                    list`,
	}, {
		name:     "component given with With",
		log:      func(l *slog.Logger) { l.With("component", "kube-scheduler", "a", 1).Warn("x", "b", true) },
		text:     `time=2026-01-02T12:00:00.000Z level=WARN component=kube-scheduler msg=x a=1 b=true`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"WARN","msg":"x","component":"kube-scheduler","a":1,"b":true}`,
		terminal: `12:00:00.000 WARN  kube-scheduler          x a=1 b=true`,
	}, {
		name:     "component given with the record",
		log:      func(l *slog.Logger) { l.Info("ready", "component", "health", "took", time.Second) },
		text:     `time=2026-01-02T12:00:00.000Z level=INFO component=health msg=ready took=1s`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"INFO","msg":"ready","component":"health","took":1000000000}`,
		terminal: `12:00:00.000 INFO  health                  ready took=1s`,
	}, {
		name: "groups",
		log: func(l *slog.Logger) {
			l.With("a", 1).WithGroup("g").With("component", "mine").Info("x", "level", "high", "b", slog.GroupValue(slog.Int("c", 2)))
		},
		text:     `time=2026-01-02T12:00:00.000Z level=INFO component=etcd msg=x a=1 g.component=mine g.level=high g.b.c=2`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"INFO","msg":"x","component":"etcd","a":1,"g":{"component":"mine","level":"high","b":{"c":2}}}`,
		terminal: `12:00:00.000 INFO  etcd                    x a=1 g.component=mine g.level=high g.b.c=2`,
	}, {
		name:     "a terminal is not for a message to steer",
		log:      func(l *slog.Logger) { l.Info("\x1b[2J", "k", "\x1b[2J") },
		text:     `time=2026-01-02T12:00:00.000Z level=INFO component=etcd msg="\x1b[2J" k="\x1b[2J"`,
		json:     `{"time":"2026-01-02T12:00:00Z","level":"INFO","msg":"\u001b[2J","component":"etcd","k":"\u001b[2J"}`,
		terminal: `12:00:00.000 INFO  etcd                    "\x1b[2J" k="\x1b[2J"`,
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for format, want := range map[string]string{Text: tt.text, JSON: tt.json, Plain: tt.terminal} {
				logs, out := newLogs(t, format, "debug")
				tt.log(slog.New(atNoon{logs.Handler("etcd")}))
				if got := out.String(); got != want+"\n" {
					t.Errorf("%s:\ngot  %swant %s", format, got, want)
				}
			}
		})
	}
}

func TestTerminalColours(t *testing.T) {
	logs, out := newLogs(t, Terminal)
	slog.New(atNoon{logs.Handler("etcd")}).Error("down", "err", "x")
	want := "\x1b[2m12:00:00.000\x1b[0m \x1b[31;1mERROR\x1b[0m \x1b[36metcd                   \x1b[0m down \x1b[2merr=x\x1b[0m\n"
	if got := out.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestParseLevel(t *testing.T) {
	tests := []struct {
		in, component string
		want          slog.Level
		err           string
	}{
		{in: "info", component: All},
		{in: "etcd=error", component: "etcd", want: slog.LevelError},
		{in: "warn", component: All, want: slog.LevelWarn},
		{in: "kube-apiserver=4", component: "kube-apiserver", want: slog.LevelDebug},
		{in: "10", component: All, want: -10},
		{in: "0", component: All},
		{in: "etcd=", err: `unknown log level ""`},
		{in: "=debug", err: `"=debug" is not COMPONENT=LEVEL`},
		{in: "loud", err: `unknown log level "loud"`},
		{in: "-1", err: `unknown log level "-1"`},
		{in: "21", err: `unknown log level "21"`},
	}
	for _, tt := range tests {
		component, level, err := ParseLevel(tt.in)
		if tt.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
				t.Errorf("ParseLevel(%q): got error %v, want %s…", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || component != tt.component || level != tt.want {
			t.Errorf("ParseLevel(%q) = %q, %v, %v; want %q, %v", tt.in, component, level, err, tt.component, tt.want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(nil, "xml", nil); err == nil || !strings.Contains(err.Error(), `unknown log format "xml"`) {
		t.Errorf("format xml: got %v", err)
	}
	if _, err := New(nil, Text, []string{"loud"}); err == nil {
		t.Error("level loud: got no error")
	}
}

func TestLevelsPerComponent(t *testing.T) {
	logs, out := newLogs(t, Text, "warn", "etcd=debug")
	etcd, api := logs.Logger("etcd"), logs.Logger("kube-apiserver")
	changes := 0
	logs.OnLevelChange(func() { changes++ })
	lines := func() string {
		out.Reset()
		etcd.Debug("one")
		api.Info("two")
		api.With("component", "etcd").Debug("three")
		etcd.Info("four", "component", "kube-apiserver")
		var got []string
		for line := range strings.Lines(out.String()) {
			got = append(got, strings.TrimSpace(line[strings.LastIndex(line, "msg=")+4:]))
		}
		return strings.Join(got, " ")
	}
	step := func(component, level, want string) {
		t.Helper()
		if component != "start" {
			if err := logs.SetLevel(component, level); err != nil {
				t.Fatalf("SetLevel(%q, %q): %v", component, level, err)
			}
		}
		if got := lines(); got != want {
			t.Errorf("after %s=%s: got %q, want %q", component, level, got, want)
		}
	}
	step("start", "", "one three")
	step("", "info", "one two three four")
	step("kube-apiserver", "error", "one three")
	step("all", "debug", "one three")
	step("etcd", "error", "")
	step("etcd", "debug", "one three")
	step("kube-apiserver", "debug", "one two three four")
	if changes != 6 {
		t.Errorf("got %d calls of the hook, want 6", changes)
	}
	if err := logs.SetLevel("etcd", "loud"); err == nil {
		t.Error("SetLevel(etcd, loud): got no error")
	}
	want := map[string]string{"all": "debug", "etcd": "debug", "kube-apiserver": "debug"}
	if got := logs.Levels(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Levels() = %v, want %v", got, want)
	}
}

func TestSetLevels(t *testing.T) {
	logs, _ := newLogs(t, Text, "warn", "etcd=debug")
	logs.Logger("lb")
	for _, tt := range []struct {
		levels []string
		want   map[string]string
	}{
		{[]string{"error", "lb=debug"}, map[string]string{"all": "error", "etcd": "error", "lb": "debug"}},
		{[]string{"etcd=4", "x=loud"}, map[string]string{"all": "error", "etcd": "error", "lb": "debug"}}, // refused
		{nil, map[string]string{"all": "info", "etcd": "info", "lb": "info"}},
	} {
		err := logs.SetLevels(tt.levels)
		if got := logs.Levels(); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("SetLevels(%q): got %v, %v; want %v", tt.levels, got, err, tt.want)
		}
	}
}

func TestLongLinesAreCut(t *testing.T) {
	huge := strings.Repeat("ä\"", MaxLine)
	many := make([]any, 0, 8000)
	for i := range 4000 {
		many = append(many, fmt.Sprintf("key%d", i), i)
	}
	tests := map[string]func(*slog.Logger){
		"message":   func(l *slog.Logger) { l.Info(huge) },
		"text":      func(l *slog.Logger) { l.Info("x", "body", huge, "n", 1) },
		"any":       func(l *slog.Logger) { l.Info("x", "body", struct{ A string }{huge}) },
		"group":     func(l *slog.Logger) { l.WithGroup("g").Info("x", "body", huge) },
		"many":      func(l *slog.Logger) { l.Info("x", many...) },
		"key":       func(l *slog.Logger) { l.Info("x", huge, 1) },
		"component": func(l *slog.Logger) { l.With("component", huge).Info("x") },
		"control":   func(l *slog.Logger) { l.Info(strings.Repeat("\x01", MaxLine)) },
	}
	for name, log := range tests {
		for _, format := range []string{Text, JSON, Terminal} {
			t.Run(name+" "+format, func(t *testing.T) {
				logs, out := newLogs(t, format)
				log(logs.Logger("etcd"))
				line := out.String()
				if len(line) > MaxLine || strings.Count(line, "\n") != 1 || !strings.Contains(line, "truncated") {
					t.Errorf("got %d bytes in %d lines: %.200q…", len(line), strings.Count(line, "\n"), line)
				}
				if format == JSON && !json.Valid(out.Bytes()) {
					t.Errorf("not JSON: %.200q…", line)
				}
			})
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	logs, out := newLogs(t, Text)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			component := fmt.Sprintf("c%d", i%4)
			log := logs.Logger(component)
			for n := range 200 {
				log.With("n", n).Error("line")
				logs.SetLevel(component, []string{"info", "debug", "2"}[n%3])
				logs.SetLevel(All, []string{"info", "3"}[n%2])
				logs.Level(component)
				logs.Levels()
			}
		})
	}
	wg.Wait()
	n := 0
	for line := range strings.Lines(out.String()) {
		if n++; !strings.HasPrefix(line, "time=") || strings.Count(line, "msg=line") != 1 {
			t.Fatalf("broken line %q", line)
		}
	}
	if n != 1600 {
		t.Errorf("got %d lines, want 1600", n)
	}
}

func TestDisabledLevelDoesNotAllocate(t *testing.T) {
	logs, _ := newLogs(t, Text)
	h := logs.Handler("etcd")
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		h.Enabled(ctx, slog.LevelDebug)
		logs.Level("etcd")
		logs.Level("kube-apiserver")
	}); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func BenchmarkEnabled(b *testing.B) {
	logs, _ := newLogs(b, Text)
	h := logs.Handler("etcd")
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if h.Enabled(ctx, slog.LevelDebug) {
			b.Fatal("debug is enabled")
		}
	}
}

func BenchmarkLine(b *testing.B) {
	for _, format := range []string{Text, JSON} {
		b.Run(format, func(b *testing.B) {
			logs, out := newLogs(b, format)
			log := logs.Logger("etcd").With("member", "one")
			b.ReportAllocs()
			for b.Loop() {
				out.Reset()
				log.Info("ready", "took", time.Second)
			}
		})
	}
}

// The function of SpellHints spells the hint of a record, and nothing else.
func TestSpellHints(t *testing.T) {
	logs, out := newLogs(t, Plain)
	logs.SpellHints(func(hint string) string { return strings.ReplaceAll(hint, "kthwd", "bin/kthwd") })
	log := logs.Logger("kthwd")
	log.Warn("kthwd waits", "hint", "kthwd status", "do", "kthwd status")
	log.With("a", 1).Warn("again", "hint", "kthwd status")
	log.WithGroup("g").Warn("in a group", "hint", "kthwd status")
	for _, want := range []string{`kthwd waits hint="bin/kthwd status" do="kthwd status"`, `again a=1 hint="bin/kthwd status"`, `in a group g.hint="kthwd status"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant %q", out.String(), want)
		}
	}
}
