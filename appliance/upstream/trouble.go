package upstream

import (
	"log/slog"
	"strings"
	"sync"
	"time"

	"kthwd/appliance/cause"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// Upstream logs why a program does not work, and then shows "reason withheld" or nothing
// at all in its own health checks. This file keeps the newest error of each program and
// kind, so that the state of the program can show it.

const (
	troubleAge   = 2 * time.Minute  // an error that was not repeated for this long is over
	troubleSoon  = 20 * time.Second // errors shortly before a change of state belong to it
	lastingAge   = 30 * time.Second // a healthy program's error is a fault once it lasts this long,
	lastingCount = 3                // and was logged this often
	troubleText  = 1 << 10          // bytes that are kept of an error
)

// trouble is one kind of error of a program, without a break longer than troubleAge.
type trouble struct {
	text        string // of the newest line
	known       bool
	lasting     bool
	named       bool // text names the object at fault
	count       int
	first, last time.Time
}

// troubles are those of all programs in this process, by program and kind. Their number is
// bounded by the table of causes.
type troubles struct {
	mu  sync.Mutex
	now func() time.Time
	all map[string]map[string]*trouble
}

// heard are the errors in the lines of this process. There is one, because klog's logger is
// one for the process as well.
var heard = newTroubles()

func newTroubles() *troubles {
	return &troubles{now: time.Now, all: map[string]map[string]*trouble{}}
}

// note keeps a line if it is an error, or a warning with a known cause.
func (t *troubles) note(component string, r slog.Record) {
	line := troubleLine(r)
	if cause.IsRoutine(line) {
		return
	}
	c, known := cause.Of(line, cause.Names{})
	if !known && r.Level < slog.LevelError {
		return
	}
	if component == program.Kubernetes && strings.Contains(line, "storage/cacher.go") {
		component = program.APIServer
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	kinds := t.all[component]
	if kinds == nil {
		kinds = map[string]*trouble{}
		t.all[component] = kinds
	}
	now := t.now()
	is := kinds[c.Kind]
	if is == nil || now.Sub(is.last) > troubleAge {
		is = &trouble{first: now}
		kinds[c.Kind] = is
	}
	is.last = now
	is.count++
	if is.named && !c.Named { // such as a decryption that fails, and says of no object
		return
	}
	is.text, is.known, is.lasting, is.named = line, known, c.Lasting, c.Named
}

// troubleLine is the message of a line with its error and the values that a cause may need.
func troubleLine(r slog.Record) string {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "err", "error":
			line = strings.TrimPrefix(line+": "+a.Value.String(), "Unhandled Error: ")
		case "clock-drift":
			line += " clock-drift=" + a.Value.String()
		}
		return true
	})
	if line = text.Line(line); len(line) > troubleText {
		line = strings.ToValidUTF8(line[:troubleText], "")
	}
	return line
}

// of returns the error that explains the state of a program best: a known cause before an
// unknown one, then the newest. ok is false if none does.
func (t *troubles) of(s supervise.Status) (best trouble, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	consider := func(component string, knownOnly bool) {
		for _, is := range t.all[component] {
			if !is.explains(s, now) || knownOnly && !is.known {
				continue
			}
			if !ok || is.known && !best.known || is.known == best.known && is.last.After(best.last) {
				best, ok = *is, true
			}
		}
	}
	consider(s.Name, false)
	if s.Name == program.APIServer && !s.Healthy() {
		consider(program.Kubernetes, true) // the caches of the API server's own client
	}
	return best, ok
}

// explains reports whether an error says something about the state s.
func (is *trouble) explains(s supervise.Status, now time.Time) bool {
	recent := now.Sub(is.last) <= troubleAge
	switch {
	case s.Name == program.Etcd && is.known: // it works, and another member does not
		return recent
	case s.Healthy():
		return recent && is.lasting && is.count >= lastingCount && is.last.Sub(is.first) >= lastingAge && is.first.After(s.Since.Add(-troubleAge))
	}
	return recent && is.last.After(s.Since.Add(-troubleSoon))
}

// Explain adds to each program's state the error that its code has logged, unless the state
// has one already, or the error with which its last term has ended, if only that has a known
// cause. A state that nothing explains stays as it is.
func Explain(all []supervise.Status) []supervise.Status {
	for i, s := range all {
		if s.Cause != "" {
			continue
		}
		is, ok := heard.of(s)
		switch {
		case !is.known && s.State == supervise.Starting && isKnown(s.LastError): // which upstream may log as a warning
			all[i].Cause, all[i].CauseSince = s.LastError, s.Since
		case ok:
			all[i].Cause, all[i].CauseSince = is.text, is.first
		}
	}
	return all
}

func isKnown(text string) bool {
	_, ok := cause.Of(text, cause.Names{})
	return ok
}
