package upstream

import (
	"log/slog"
	"testing"
	"time"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
)

const (
	refusing = `Failed to update lease: admission webhook "w.example.com" denied the request: no`
	dead     = `failed calling webhook "w.example.com": failed to call webhook: dead`
)

// hearing is a record of errors whose clock a test turns.
func hearing(begin time.Time) (*troubles, *time.Time, func(component string, level slog.Level, message string)) {
	now := begin
	h := newTroubles()
	h.now = func() time.Time { return now }
	return h, &now, func(component string, level slog.Level, message string) {
		h.note(component, slog.NewRecord(now, level, message, 0))
	}
}

func TestTroubleOfAProgramThatFails(t *testing.T) {
	begin := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	h, now, say := hearing(begin)
	starting := supervise.Status{Name: program.Scheduler, State: supervise.Starting, Since: begin}
	if _, ok := h.of(starting); ok {
		t.Error("nothing was logged, and there is an error")
	}
	say(program.Scheduler, slog.LevelWarn, "a warning without a known cause")
	say(program.Scheduler, slog.LevelError, "the object has been modified; please apply your changes to the latest version and try again")
	say(program.Scheduler, slog.LevelError, "Failed to watch CA file, will retry later: error creating fsnotify watcher: too many open files")
	if got, ok := h.of(starting); ok {
		t.Errorf("got %+v, want nothing of a warning and of routine", got)
	}
	say(program.Scheduler, slog.LevelError, "something unheard of")
	if got, _ := h.of(starting); got.text != "something unheard of" {
		t.Errorf("got %+v, want the unknown error itself", got)
	}
	say(program.Scheduler, slog.LevelError, refusing)
	*now = now.Add(time.Minute)
	say(program.Scheduler, slog.LevelError, refusing)
	say(program.Scheduler, slog.LevelError, "another thing")
	if got, _ := h.of(starting); got.text != refusing || !got.first.Equal(begin) || got.count != 2 {
		t.Errorf("got %+v, want the known cause since its first line", got)
	}
	if _, ok := h.of(supervise.Status{Name: program.ControllerManager, State: supervise.Starting, Since: begin}); ok {
		t.Error("the error belongs to another program")
	}
	*now = now.Add(troubleAge + time.Second)
	if got, ok := h.of(starting); ok {
		t.Errorf("got %+v, long after the last line", got)
	}
}

// A program that works has a fault only if it meets it again and again, and if it is not
// just a policy that refuses its request.
func TestTroubleOfAProgramThatWorks(t *testing.T) {
	begin := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	h, now, say := hearing(begin)
	ready := supervise.Status{Name: program.ControllerManager, State: supervise.Ready, Since: begin.Add(-time.Hour)}
	for range lastingCount - 1 {
		say(ready.Name, slog.LevelError, dead)
		if got, ok := h.of(ready); ok {
			t.Errorf("got %+v at once", got)
		}
		*now = now.Add(lastingAge)
	}
	say(ready.Name, slog.LevelError, dead)
	if got, ok := h.of(ready); !ok || got.text != dead {
		t.Errorf("got %+v, want the dead webhook", got)
	}
	h, now, say = hearing(begin)
	for range 2 * lastingCount {
		say(ready.Name, slog.LevelError, refusing)
		*now = now.Add(lastingAge)
	}
	if got, ok := h.of(ready); ok {
		t.Errorf("got %+v, want nothing about a policy", got)
	}
}

// The API server's caches read its storage through client-go, whose lines name no program.
func TestTroubleOfTheCaches(t *testing.T) {
	begin := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	h, _, say := hearing(begin)
	key := `failed to list *core.Secret: unable to transform key "/registry/secrets/shop/pw": no matching prefix found`
	say(program.Kubernetes, slog.LevelError, key)
	say(program.Kubernetes, slog.LevelError, "failed to decrypt data: no matching prefix found")
	say(program.Kubernetes, slog.LevelError, "an unknown error of any client")
	if got, _ := h.of(supervise.Status{Name: program.APIServer, State: supervise.Starting, Since: begin}); got.text != key {
		t.Errorf("got %+v, want the key", got)
	}
	if got, ok := h.of(supervise.Status{Name: program.Scheduler, State: supervise.Starting, Since: begin}); ok {
		t.Errorf("got %+v for the scheduler", got)
	}
}

func TestTroubleLine(t *testing.T) {
	r := slog.NewRecord(time.Time{}, slog.LevelError, "Unhandled Error", 0)
	r.AddAttrs(slog.String("logger", "UnhandledError"), slog.String("err", "boom\n\x1b[31m"))
	if got, want := troubleLine(r), "boom"; len(got) < len(want) || got[:len(want)] != want || len(got) > 40 {
		t.Errorf("got %q", got)
	}
}

// The end of a term may be the only place of a known cause: kube-controller-manager logs a
// refused token as a warning, and then what follows from it as an error.
func TestExplainByTheEndOfATerm(t *testing.T) {
	before := heard
	t.Cleanup(func() { heard = before })
	began := time.Now()
	h, _, log := hearing(began)
	heard = h
	log(program.ControllerManager, slog.LevelError, "Error building controllers: timed out waiting for the condition")
	for _, tt := range []struct {
		last, want string
		state      supervise.State
	}{
		{refusing, refusing, supervise.Starting},
		{"timed out", "Error building controllers: timed out waiting for the condition", supervise.Starting},
		{refusing, "Error building controllers: timed out waiting for the condition", supervise.Waiting},
	} {
		s := supervise.Status{Name: program.ControllerManager, State: tt.state, Since: began, LastError: tt.last}
		if got := Explain([]supervise.Status{s})[0]; got.Cause != tt.want || !got.CauseSince.Equal(began) {
			t.Errorf("%s, %q: got %q since %s, want %q", tt.state, tt.last, got.Cause, got.CauseSince, tt.want)
		}
	}
	log(program.ControllerManager, slog.LevelError, dead)
	if got := Explain([]supervise.Status{{Name: program.ControllerManager, State: supervise.Starting, Since: began, LastError: refusing}})[0]; got.Cause != dead {
		t.Errorf("a known cause that was logged: got %q", got.Cause)
	}
}
