package supervise

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// part is a component made of a function.
type part struct {
	name string
	run  func(ctx context.Context, ready func()) error
}

func (p part) Name() string                                { return p.name }
func (p part) Run(ctx context.Context, ready func()) error { return p.run(ctx, ready) }

// diary records events with their times in the test.
type diary struct {
	begun time.Time

	mu    sync.Mutex
	lines []string
}

func newDiary() *diary { return &diary{begun: time.Now()} }

func (d *diary) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf("%v ", time.Since(d.begun))+fmt.Sprintf(format, args...))
}

// server takes start to become ready and stop to return once it is asked to.
func (d *diary) server(name string, start, stop time.Duration) part {
	return part{name, func(ctx context.Context, ready func()) error {
		d.note("%s starts", name)
		select {
		case <-time.After(start):
		case <-ctx.Done():
			d.note("%s stopped before it was ready", name)
			return nil
		}
		ready()
		<-ctx.Done()
		d.note("%s asked to stop", name)
		time.Sleep(stop)
		d.note("%s stopped", name)
		return nil
	}}
}

// check compares the diary with want, both without regard to the order within
// one moment and one kind of event.
func (d *diary) check(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	got := slices.Clone(d.lines)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// before fails unless the first line that ends in a precedes the one that ends in b.
func (d *diary) before(t *testing.T, a, b string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	at := func(end string) int {
		return slices.IndexFunc(d.lines, func(l string) bool { return strings.HasSuffix(l, " "+end) })
	}
	if i, j := at(a), at(b); i < 0 || j < 0 || i > j {
		t.Errorf("got\n  %s\nwant %q before %q", strings.Join(d.lines, "\n  "), a, b)
	}
}

// running is a group whose Run continues in the background.
type running struct {
	*Group
	stop func() // asks it to stop
	done chan error
	log  *logBuffer
}

// run runs a group in a synctest bubble.
func run(g *Group, log *logBuffer) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Group: g, stop: cancel, done: make(chan error, 1), log: log}
	go func() {
		defer cancel()
		r.done <- g.Run(ctx)
	}()
	return r
}

// ended returns the result of Run. It fails if Run has not returned yet.
func (r *running) ended(t *testing.T) error {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-r.done:
		return err
	default:
		t.Fatalf("Run has not returned; its log:\n%s", r.log)
		return nil
	}
}

// logBuffer keeps log lines, without their times.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func newGroup() (*Group, *logBuffer) {
	l := &logBuffer{}
	h := slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return New(slog.New(h)), l
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// has fails unless one line contains all of parts.
func (l *logBuffer) has(t *testing.T, parts ...string) {
	t.Helper()
	for line := range strings.SplitSeq(l.String(), "\n") {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return
		}
	}
	t.Errorf("got log\n%swant a line with %q", l, parts)
}

func (l *logBuffer) hasNot(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(l.String(), text) {
		t.Errorf("got log\n%swant nothing with %q", l, text)
	}
}

// states returns the record as "name=state name=state …".
func states(g *Group) string {
	var all []string
	for _, s := range g.Status() {
		all = append(all, s.Name+"="+string(s.State))
	}
	return strings.Join(all, " ")
}

func checkStates(t *testing.T, g *Group, want string) {
	t.Helper()
	if got := states(g); got != want {
		t.Errorf("states: got %s, want %s", got, want)
	}
}

// checkError compares the text of an error; "" means no error.
func checkError(t *testing.T, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("error: got %q, want %q", got, want)
	}
}
