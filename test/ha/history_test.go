package ha

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// change is one change of one object, as etcd has it, or as a watcher saw it.
type change struct {
	Rev     int64
	Key     string // name of the object
	N       int64  // which write of this object it was, as the writer counts
	Token   string // which attempt at it
	Deleted bool
}

func (c change) String() string {
	if c.Deleted {
		return fmt.Sprintf("deletion of %s at revision %d", c.Key, c.Rev)
	}
	return fmt.Sprintf("%s=%d (%s) at revision %d", c.Key, c.N, c.Token, c.Rev)
}

// ack is a write that was acknowledged.
type ack struct {
	Writer    string
	Patient   bool
	Begun, At time.Time
	Failed    []string // attempts before, and how each ended
	change             // Rev is 0 where the answer does not say
}

// seen is what one watcher was given, in its order. A watcher that has to list
// anew, because no API server knows what came after its last event any more,
// notes what it found instead.
type seen struct {
	change
	Relisted []change // the objects that were there at Rev; nil when it is an event
}

// history is all that clients and etcd have to say of the revisions after Start,
// up to and including End.
type history struct {
	Start, End int64
	Before     map[string]change // the objects at Start
	Truth      []change          // etcd's own, from one member
	Acks       []ack
	Watches    map[string][]seen
	Finals     map[string][]change // the objects at End, by who was asked
}

// after is the objects at End.
func (h *history) after() map[string]change { return fold(h.Before, h.Truth, h.End) }

func fold(before map[string]change, changes []change, until int64) map[string]change {
	after := map[string]change{}
	for key, c := range before {
		after[key] = c
	}
	for _, c := range changes {
		switch {
		case c.Rev > until:
		case c.Deleted:
			delete(after, c.Key)
		default:
			after[c.Key] = c
		}
	}
	return after
}

// check is every way in which the history is not what it must be.
func (h *history) check() (problems []string) {
	for _, part := range [][]string{h.lost(), h.doubled(), h.unwatched(), h.different()} {
		problems = append(problems, shorten(part, 8)...)
	}
	return problems
}

// shorten keeps the first n.
func shorten(problems []string, n int) []string {
	if len(problems) <= n {
		return problems
	}
	return append(slices.Clone(problems[:n]), fmt.Sprintf("… and %d more like this", len(problems)-n))
}

// lost are acknowledged writes that etcd has not, or not where it was said.
func (h *history) lost() (problems []string) {
	type id struct {
		key, token string
		deleted    bool
	}
	at := map[id]int64{}
	for _, c := range h.Truth {
		at[id{c.Key, c.Token, c.Deleted}] = c.Rev
	}
	for _, a := range h.Acks {
		token := a.Token
		if a.Deleted {
			token = ""
		}
		switch rev := at[id{a.Key, token, a.Deleted}]; {
		case rev == 0:
			problems = append(problems, fmt.Sprintf("lost: %s acknowledged the %s, which etcd has not", a.At.Format(clock), a.change))
		case a.Rev != 0 && a.Rev != rev:
			problems = append(problems, fmt.Sprintf("lost: acknowledged the %s, which etcd has at revision %d", a.change, rev))
		}
	}
	return problems
}

const clock = "15:04:05.000"

// doubled are writes that were applied more than once, and ones between which
// another is missing: each counter goes up by one.
func (h *history) doubled() (problems []string) {
	last := map[string]change{}
	for key, c := range h.Before {
		last[key] = c
	}
	for _, c := range h.Truth {
		before, known := last[c.Key]
		switch {
		case known && before.Deleted:
			problems = append(problems, fmt.Sprintf("twice: %s after its deletion at revision %d", c, before.Rev))
		case c.Deleted && !known:
			problems = append(problems, fmt.Sprintf("twice: %s, which was not there", c))
		case c.Deleted:
		case known && c.N <= before.N:
			problems = append(problems, fmt.Sprintf("twice: %s after %s", c, before))
		case known && c.N > before.N+1:
			problems = append(problems, fmt.Sprintf("lost: nothing between %s and %s", before, c))
		}
		last[c.Key] = c
	}
	return problems
}

// unwatched are differences between what happened and what each watcher saw.
func (h *history) unwatched() (problems []string) {
	for _, name := range sorted(h.Watches) {
		found := h.unwatchedBy(h.Watches[name])
		for i := range found {
			found[i] = "watcher " + name + ": " + found[i]
		}
		problems = append(problems, shorten(found, 5)...)
	}
	return problems
}

func (h *history) unwatchedBy(events []seen) (problems []string) {
	next := 0 // in Truth
	for _, e := range events {
		if e.Rev <= h.Start || e.Rev > h.End && e.Relisted == nil {
			continue
		}
		if e.Relisted != nil {
			for next < len(h.Truth) && h.Truth[next].Rev <= e.Rev {
				next++
			}
			problems = append(problems, compare("listed anew", e.Relisted, fold(h.Before, h.Truth, e.Rev))...)
			continue
		}
		for next < len(h.Truth) && h.Truth[next].Rev < e.Rev {
			problems = append(problems, fmt.Sprintf("did not see the %s", h.Truth[next]))
			next++
		}
		switch {
		case next == len(h.Truth) || h.Truth[next].Rev > e.Rev:
			problems = append(problems, fmt.Sprintf("saw, late or twice or never written: %s", e.change))
		case h.Truth[next] != e.change:
			problems = append(problems, fmt.Sprintf("saw %s, want %s", e.change, h.Truth[next]))
			next++
		default:
			next++
		}
	}
	for ; next < len(h.Truth); next++ {
		problems = append(problems, fmt.Sprintf("did not see the %s", h.Truth[next]))
	}
	return problems
}

// different are differences between what etcd's changes lead to and what is there.
func (h *history) different() (problems []string) {
	want := h.after()
	for _, name := range sorted(h.Finals) {
		problems = append(problems, shorten(compare(name+" has at the end", h.Finals[name], want), 5)...)
	}
	return problems
}

func compare(who string, got []change, want map[string]change) (problems []string) {
	there := map[string]bool{}
	for _, c := range got {
		there[c.Key] = true
		if w, known := want[c.Key]; !known {
			problems = append(problems, fmt.Sprintf("%s: %s, want none", who, c))
		} else if w != c {
			problems = append(problems, fmt.Sprintf("%s: %s, want %s", who, c, w))
		}
	}
	for _, key := range sorted(want) {
		if !there[key] {
			problems = append(problems, fmt.Sprintf("%s: not %s", who, want[key]))
		}
	}
	return problems
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// gap is a time without an acknowledgement.
type gap struct {
	From time.Time
	Took time.Duration
	End  *ack // what ended it; nil when nothing did
}

func (g *gap) note(from, until time.Time, end *ack) {
	if took := until.Sub(from); took > g.Took {
		*g = gap{from, took, end}
	}
}

// gaps are the longest times without an acknowledgement from begin to end: of any
// writer, of the worst impatient one, and of the worst patient one. Each has from
// begin on what it has had before.
func gaps(acks []ack, begin, end time.Time) (any, one, patient gap) {
	acks = slices.Clone(acks)
	slices.SortStableFunc(acks, func(a, b ack) int { return a.At.Compare(b.At) })
	last, worst, lastOfAny := map[string]time.Time{}, map[string]*gap{}, begin
	for i := range acks {
		a := &acks[i]
		if worst[a.Writer] = &one; a.Patient {
			worst[a.Writer] = &patient
		}
		if last[a.Writer].IsZero() {
			last[a.Writer] = begin
		}
		if a.At.Before(begin) || a.At.After(end) {
			continue
		}
		worst[a.Writer].note(last[a.Writer], a.At, a)
		any.note(lastOfAny, a.At, a)
		last[a.Writer], lastOfAny = a.At, a.At
	}
	for writer, at := range last {
		worst[writer].note(at, end, nil)
	}
	any.note(lastOfAny, end, nil)
	return any, one, patient
}

// tenure says who holds a lease from a moment on; nobody when Holder is empty.
type tenure struct {
	From   time.Time
	Holder string // name of the controller
}

// action is a change that kube-controller-manager or kube-scheduler of one
// controller made, by the audit log of the API server beside it.
type action struct {
	Component, Controller string
	Begun, Ended          time.Time
	What                  string
}

// misdeeds are actions of those who did not hold the lease of their component
// for the whole time, from the request to the answer.
func misdeeds(tenures map[string][]tenure, actions []action) (problems []string) {
	for _, a := range actions {
		for _, at := range []time.Time{a.Begun, a.Ended} {
			holder, since := holderAt(tenures[a.Component], at)
			if holder == a.Controller {
				continue
			}
			problems = append(problems, fmt.Sprintf("two leaders: %s on %s did %s from %s to %s, while the lease was %s's since %s", a.Component, a.Controller,
				a.What, a.Begun.Format(clock), a.Ended.Format(clock), strings.TrimSpace(holder+" "), since.Format(clock)))
			break
		}
	}
	return shorten(problems, 10)
}

func holderAt(tenures []tenure, at time.Time) (holder string, since time.Time) {
	holder = "nobody"
	for _, t := range tenures {
		if t.From.After(at) {
			break
		}
		holder, since = t.Holder, t.From
	}
	if holder == "" {
		holder = "nobody"
	}
	return holder, since
}
