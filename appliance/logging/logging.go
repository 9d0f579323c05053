// Package logging writes the log of the process: text or JSON lines that each name
// their component. Each component has a level, which can change while the process
// runs.
//
//	logs, err := logging.New(os.Stderr, logging.Text, []string{"info", "etcd=debug"})
//	log := logs.Logger("kthwd")
//	log.Info("ready", "took", took)         // … level=INFO component=kthwd msg=ready took=2.1s
//	logs.SetLevel("kube-apiserver", "4")    // slog level -4, the same as debug
//
// A level is error, warn, info, debug or a number n, which is slog level -n, to which
// klog's verbosity n maps in slog. The bridges in package appliance decide the levels
// of upstream's lines.
//
// An attribute "component" outside any group, given to With or with the record,
// replaces the logger's own, so the line has it once. With also switches to that
// component's level; a record's attribute can only suppress the line by that level.
//
// The package imports only the standard library. The bridges from klog, zap and gRPC
// are in appliance and use Level and OnLevelChange. Callers must keep secrets out of
// their lines: this package does not remove them.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// The formats of New. Terminal and Plain are for people: shorter than Text, and
// aligned. Terminal is coloured. Journal is for systemd's journal: it has no time, and
// the level becomes the journal's priority.
const (
	Text     = "text"
	JSON     = "json"
	Terminal = "terminal"
	Plain    = "plain"
	Journal  = "journal"
)

// All names the default level in SetLevel and Levels, which applies to each component
// without its own level.
const All = "all"

// MaxLine is the maximum length of a line in bytes.
const MaxLine = 16 << 10

// Logs is the log of the process. Make one with New. All methods are safe for
// concurrent use.
type Logs struct {
	encode encoder
	spell  func(string) string // see SpellHints; nil leaves hints as they are

	outMu sync.Mutex
	out   io.Writer
	tail  tail

	standard atomic.Int64
	levels   atomic.Pointer[map[string]*level] // read without a lock, replaced under mu

	mu    sync.Mutex // held while levels change
	hooks []func()
}

// level is the level of one component, read without a lock for each record.
type level struct {
	atomic.Int64
	own bool // set for this component, so it does not follow the default; guarded by Logs.mu
}

func (l *level) enabled(at slog.Level) bool { return at >= slog.Level(l.Load()) }

// New returns a log that writes to w with one Write per line. Each of levels is
// "LEVEL" or "COMPONENT=LEVEL"; later ones win. Without levels the level is info.
func New(w io.Writer, format string, levels []string) (*Logs, error) {
	encode, ok := encoders[format]
	if !ok {
		return nil, fmt.Errorf("unknown log format %q: want %s or %s", format, Text, JSON)
	}
	l := &Logs{encode: encode, out: w}
	l.levels.Store(&map[string]*level{})
	for _, s := range levels {
		component, level, err := ParseLevel(s)
		if err != nil {
			return nil, err
		}
		l.set(component, level)
	}
	return l, nil
}

// SpellHints makes f spell each hint: the text of an attribute "hint" that comes with a
// record, outside any group. The program so names the commands in it as they are typed here.
// Call it before the first line.
func (l *Logs) SpellHints(f func(string) string) { l.spell = f }

// ParseLevel parses "LEVEL" or "COMPONENT=LEVEL". Without a component it returns All.
func ParseLevel(s string) (component string, at slog.Level, err error) {
	component, name, ok := strings.Cut(s, "=")
	if !ok {
		component, name = All, s
	}
	if component == "" || strings.ContainsAny(component, " \t\n\"") {
		return "", 0, fmt.Errorf("%q is not COMPONENT=LEVEL", s)
	}
	at, err = parseName(name)
	return component, at, err
}

func parseName(name string) (slog.Level, error) {
	switch name {
	case "error":
		return slog.LevelError, nil
	case "warn":
		return slog.LevelWarn, nil
	case "info":
		return slog.LevelInfo, nil
	case "debug":
		return slog.LevelDebug, nil
	}
	n, err := strconv.ParseUint(name, 10, 8)
	if err != nil || n > 20 {
		return 0, fmt.Errorf("unknown log level %q: want error, warn, info, debug or a verbosity from 0 to 20", name)
	}
	return slog.Level(-int(n)), nil
}

// levelName is the inverse of parseName.
func levelName(at slog.Level) string {
	switch {
	case at >= slog.LevelError:
		return "error"
	case at >= slog.LevelWarn:
		return "warn"
	case at >= slog.LevelInfo:
		return "info"
	case at == slog.LevelDebug:
		return "debug"
	default:
		return strconv.Itoa(-int(at))
	}
}

// Logger returns a logger whose lines name component.
func (l *Logs) Logger(component string) *slog.Logger { return slog.New(l.Handler(component)) }

// Handler returns the slog.Handler of Logger.
func (l *Logs) Handler(component string) slog.Handler {
	return &handler{logs: l, component: component, level: l.level(component)}
}

// level returns the level of a component, which it creates if necessary.
func (l *Logs) level(component string) *level {
	if v, ok := (*l.levels.Load())[component]; ok {
		return v
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.levelLocked(component)
}

func (l *Logs) levelLocked(component string) *level {
	if v, ok := (*l.levels.Load())[component]; ok {
		return v
	}
	v := new(level)
	v.Store(l.standard.Load())
	next := maps.Clone(*l.levels.Load())
	next[component] = v
	l.levels.Store(&next)
	return v
}

// Level returns the lowest level of the component's lines that are written. It takes
// no lock and does not allocate.
func (l *Logs) Level(component string) slog.Level {
	if v, ok := (*l.levels.Load())[component]; ok {
		return slog.Level(v.Load())
	}
	return slog.Level(l.standard.Load())
}

// SetLevel changes the level of one component. With component "" or All it changes
// the default, which applies to all components without their own level.
func (l *Logs) SetLevel(component, level string) error {
	at, err := parseName(level)
	if err != nil {
		return err
	}
	l.set(component, at)
	return nil
}

// SetLevels replaces all levels, including those of components, with levels in the
// form that New accepts. On an error it changes none.
func (l *Logs) SetLevels(levels []string) error {
	for _, s := range levels {
		if _, _, err := ParseLevel(s); err != nil {
			return err
		}
	}
	l.mu.Lock()
	for _, v := range *l.levels.Load() {
		v.own = false
	}
	l.mu.Unlock()
	l.set(All, slog.LevelInfo)
	for _, s := range levels {
		component, level, _ := ParseLevel(s)
		l.set(component, level)
	}
	return nil
}

func (l *Logs) set(component string, at slog.Level) {
	l.mu.Lock()
	if component == "" || component == All {
		l.standard.Store(int64(at))
		for _, v := range *l.levels.Load() {
			if !v.own {
				v.Store(int64(at))
			}
		}
	} else {
		v := l.levelLocked(component)
		v.own = true
		v.Store(int64(at))
	}
	l.mu.Unlock()
	l.changed()
}

// Levels returns the level of each component that has a logger or its own level, and
// the default as All.
func (l *Logs) Levels() map[string]string {
	names := map[string]string{All: levelName(slog.Level(l.standard.Load()))}
	for component, v := range *l.levels.Load() {
		names[component] = levelName(slog.Level(v.Load()))
	}
	return names
}

// OnLevelChange makes each change of a level call f, from the goroutine that makes the
// change. With it a bridge passes the level to a library that filters lines itself,
// such as klog.
func (l *Logs) OnLevelChange(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hooks = append(l.hooks, f)
}

func (l *Logs) changed() {
	l.mu.Lock()
	hooks := slices.Clone(l.hooks)
	l.mu.Unlock()
	for _, f := range hooks {
		f()
	}
}

func (l *Logs) write(line []byte) error {
	l.tail.add(line)
	l.outMu.Lock()
	defer l.outMu.Unlock()
	_, err := l.out.Write(line)
	return err
}
