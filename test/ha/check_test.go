package ha

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// sound is a history in which everything is right: a counter goes from 1 to 3,
// one object is made and one is deleted.
func sound() *history {
	set := func(rev int64, key string, n int64, token string) change {
		return change{Rev: rev, Key: key, N: n, Token: token}
	}
	h := &history{
		Start: 10, End: 20,
		Before: map[string]change{"counter": set(9, "counter", 1, "1/1"), "old": set(5, "old", 1, "old")},
		Truth: []change{
			set(11, "counter", 2, "2/1"), set(13, "new", 1, "new"), {Rev: 15, Key: "old", Deleted: true}, set(18, "counter", 3, "3/2"),
		},
	}
	for _, c := range h.Truth {
		h.Acks = append(h.Acks, ack{Writer: "w", change: c})
	}
	h.Acks[2].Rev = 0 // the answer to a deletion does not say
	h.Watches = map[string][]seen{"a": events(h.Truth), "b": events(h.Truth)}
	h.Finals = map[string][]change{"c0": {h.Truth[3], h.Truth[1]}, "c1": {h.Truth[1], h.Truth[3]}}
	return h
}

func events(changes []change) (all []seen) {
	for _, c := range changes {
		all = append(all, seen{change: c})
	}
	return all
}

// The checker finds what it is there for, and nothing in a history that is sound.
func TestHistory(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(h *history)
		want  []string // part of each problem, in order
	}{
		{"sound", func(h *history) {}, nil},
		{"an acknowledged write is lost", func(h *history) {
			h.Acks = append(h.Acks, ack{Writer: "w", change: change{Rev: 19, Key: "counter", N: 4, Token: "4/1"}})
		}, []string{"lost: "}},
		{"an acknowledged creation is lost, everywhere", func(h *history) {
			h.Truth = slices.Delete(h.Truth, 1, 2)
			h.Watches = map[string][]seen{"a": events(h.Truth)}
			h.Finals = map[string][]change{"c0": {h.Truth[2]}}
		}, []string{"lost: "}},
		{"an acknowledged deletion is lost", func(h *history) {
			deleted := h.Truth[2]
			h.Truth = slices.Delete(h.Truth, 2, 3)
			h.Watches = map[string][]seen{"a": events(h.Truth)}
			h.Finals = map[string][]change{"c0": {h.Truth[2], h.Truth[1], h.Before[deleted.Key]}}
		}, []string{"lost: "}},
		{"another attempt was applied than the one acknowledged", func(h *history) {
			h.Acks[3].Token = "3/1"
		}, []string{"lost: "}},
		{"acknowledged at another revision", func(h *history) {
			h.Acks[3].Rev = 17
		}, []string{"which etcd has at revision 18"}},
		{"a write between two others is lost", func(h *history) {
			h.Truth = slices.Delete(h.Truth, 0, 1)
			h.Acks = h.Acks[1:]
			h.Watches = map[string][]seen{"a": events(h.Truth)}
		}, []string{"lost: nothing between counter=1 (1/1) at revision 9 and counter=3"}},
		{"two attempts at one write were applied", func(h *history) {
			again := change{Rev: 19, Key: "counter", N: 3, Token: "3/1"}
			h.Truth = append(h.Truth, again)
			h.Watches = map[string][]seen{"a": events(h.Truth)}
			h.Finals = map[string][]change{"c0": {again, h.Truth[1]}}
		}, []string{"twice: counter=3 (3/1) at revision 19 after counter=3 (3/2) at revision 18"}},
		{"an object was made anew after its deletion", func(h *history) {
			again := change{Rev: 19, Key: "old", N: 1, Token: "old"}
			h.Truth = append(h.Truth, again)
			h.Watches = map[string][]seen{"a": events(h.Truth)}
			h.Finals = map[string][]change{"c0": {again, h.Truth[1], h.Truth[3]}}
		}, []string{"twice: old=1 (old) at revision 19 after its deletion at revision 15"}},
		{"a watcher missed an event", func(h *history) {
			h.Watches["b"] = slices.Delete(h.Watches["b"], 1, 2)
		}, []string{"watcher b: did not see the new=1 (new) at revision 13"}},
		{"a watcher missed the last event", func(h *history) {
			h.Watches["b"] = h.Watches["b"][:3]
		}, []string{"watcher b: did not see the counter=3"}},
		{"a watcher saw an event twice", func(h *history) {
			h.Watches["b"] = slices.Insert(h.Watches["b"], 1, h.Watches["b"][0])
		}, []string{"watcher b: saw, late or twice or never written: counter=2"}},
		{"a watcher saw events in another order", func(h *history) {
			h.Watches["b"][0], h.Watches["b"][1] = h.Watches["b"][1], h.Watches["b"][0]
		}, []string{"watcher b: did not see the counter=2", "watcher b: saw, late or twice or never written: counter=2"}},
		{"a watcher saw what never was", func(h *history) {
			h.Watches["b"] = append(h.Watches["b"], seen{change: change{Rev: 19, Key: "ghost", N: 1}})
		}, []string{"watcher b: saw, late or twice or never written: ghost=1"}},
		{"a watcher saw another value", func(h *history) {
			h.Watches["b"][3].Token = "3/1"
		}, []string{"watcher b: saw counter=3 (3/1) at revision 18, want counter=3 (3/2) at revision 18"}},
		{"a watcher listed anew", func(h *history) {
			h.Watches["b"] = []seen{{change: change{Rev: 15}, Relisted: []change{h.Truth[0], h.Truth[1]}}, {change: h.Truth[3]}}
		}, nil},
		{"a watcher listed anew, and found an old state", func(h *history) {
			h.Watches["b"] = []seen{{change: change{Rev: 15}, Relisted: []change{h.Truth[0], h.Truth[1], h.Before["old"]}}, {change: h.Truth[3]}}
		}, []string{"watcher b: listed anew: old=1 (old) at revision 5, want none"}},
		{"a watcher listed anew when all was over", func(h *history) {
			h.Watches["b"] = []seen{{change: h.Truth[0]}, {change: change{Rev: 25}, Relisted: []change{h.Truth[1], h.Truth[3]}}}
		}, nil},
		{"a watcher listed anew when all was over, and found an old state", func(h *history) {
			h.Watches["b"] = []seen{{change: h.Truth[0]}, {change: change{Rev: 25}, Relisted: []change{h.Truth[0], h.Truth[1]}}}
		}, []string{"watcher b: listed anew: counter=2 (2/1) at revision 11, want counter=3"}},
		{"a controller has an old value", func(h *history) {
			h.Finals["c1"][1] = h.Truth[0]
		}, []string{"c1 has at the end: counter=2 (2/1) at revision 11, want counter=3"}},
		{"a controller lacks an object", func(h *history) {
			h.Finals["c1"] = h.Finals["c1"][1:]
		}, []string{"c1 has at the end: not new=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := sound()
			tt.spoil(h)
			wantProblems(t, h.check(), tt.want)
		})
	}
}

// A watcher gives away what belongs to the round that ends, and keeps the rest.
func TestWatcherTake(t *testing.T) {
	event := func(rev int64) seen { return seen{change: change{Rev: rev}} }
	list := func(rev int64) seen { return seen{change: change{Rev: rev}, Relisted: []change{}} }
	for _, tt := range []struct {
		name           string
		events         []seen
		taken, relists int
	}{
		{"events", []seen{event(11), event(20), event(21)}, 2, 0},
		{"a list in between", []seen{event(11), list(15), event(20), event(21)}, 3, 1},
		{"a list past the end, in place of the last events", []seen{event(11), list(25), event(26)}, 2, 1},
		{"a list past the end, in place of all", []seen{list(25), event(26)}, 1, 1},
		{"a list after the last event", []seen{event(11), event(20), list(25)}, 2, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &watcher{events: tt.events}
			taken, relists := w.take(20)
			if len(taken) != tt.taken || relists != tt.relists || len(w.events) != len(tt.events)-tt.taken {
				t.Errorf("got %d taken, %d kept and %d lists; want %d of %d, and %d", len(taken), len(w.events), relists, tt.taken, len(tt.events), tt.relists)
			}
		})
	}
}

func wantProblems(t *testing.T, got, want []string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.Contains(got[i], want[i])
	}
	if !ok {
		t.Errorf("got problems\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// at is so many seconds after a moment that all tests share.
func at(seconds float64) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC).Add(time.Duration(seconds * float64(time.Second)))
}

// Actions are right only while their controller holds the lease.
func TestMisdeeds(t *testing.T) {
	const program = "kube-scheduler"
	tenures := map[string][]tenure{program: {{at(0), "c0"}, {at(20), "c1"}, {at(40), ""}, {at(41), "c0"}}}
	for _, tt := range []struct {
		name       string
		controller string
		begun, end float64
		want       []string
	}{
		{"by the leader", "c0", 5, 6, nil},
		{"by the next one", "c1", 20.5, 21, nil},
		{"by the first one again", "c0", 42, 42.1, nil},
		{"by two leaders: the old one goes on", "c0", 25, 25.1, []string{"kube-scheduler on c0 did bind from 03:04:25.000 to 03:04:25.100, while the lease was c1's since 03:04:20.000"}},
		{"by the old one, answered too late", "c0", 19.9, 20.1, []string{"while the lease was c1's"}},
		{"by a standby", "c2", 5, 6, []string{"while the lease was c0's"}},
		{"before its lease", "c1", 19, 19.5, []string{"while the lease was c0's"}},
		{"after it gave the lease back", "c1", 40.5, 40.6, []string{"while the lease was nobody's"}},
		{"before there was a leader", "c0", -2, -1, []string{"while the lease was nobody's"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantProblems(t, misdeeds(tenures, []action{{program, tt.controller, at(tt.begun), at(tt.end), "bind"}}), tt.want)
		})
	}
	if got := misdeeds(tenures, []action{{"kube-controller-manager", "c0", at(5), at(6), "create"}}); len(got) != 1 {
		t.Errorf("an action without any lease: got %q, want one problem", got)
	}
}

func TestGaps(t *testing.T) {
	var acks []ack
	for _, a := range []struct {
		writer string
		at     float64
	}{
		{"a", -1}, {"b", -0.5}, {"p", -2}, // before the window
		{"a", 1}, {"a", 4}, {"b", 2.5}, {"a", 9}, {"b", 8.5}, {"p", 7}, {"b", 12},
	} {
		acks = append(acks, ack{Writer: a.writer, Patient: a.writer == "p", At: at(a.at)})
	}
	any, one, patient := gaps(acks, at(0), at(10))
	is := func(g gap, from, took float64) bool { return g.From.Equal(at(from)) && g.Took == at(took).Sub(at(0)) }
	if !is(any, 4, 3) || !is(one, 2.5, 6) || !is(patient, 0, 7) || any.End.Writer != "p" || one.End.Writer != "b" {
		t.Errorf("got %v, %v, %v; want 3s (4 to 7), 6s (b: 2.5 to 8.5), 7s (p: 0 to 7)", any, one, patient)
	}
	if any, one, patient := gaps(acks, at(12.5), at(20)); any.Took != 7500*time.Millisecond || one != any || patient != any {
		t.Errorf("nothing acknowledged for 7.5 s: got %v, %v, %v", any, one, patient)
	}
}
