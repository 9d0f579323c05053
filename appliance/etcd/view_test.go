package etcd

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"

	"kthwd/appliance/status"
)

// A follower believes the leader about the others, unless the leader's word is older than
// what the follower has seen itself.
func TestBelieve(t *testing.T) {
	const self, leader, other = "a", "b", "c"
	begin := time.Now()
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	says := func(seconds float64, active ...string) status.Controller {
		v := status.Controller{Leads: true, Member: leader, Answered: at(seconds)}
		for _, id := range []string{self, leader, other} {
			p := status.Peer{ID: id}
			for _, a := range active {
				p.Active = p.Active || a == id
			}
			v.Peers = append(v.Peers, p)
		}
		return v
	}
	for name, tt := range map[string]struct {
		lost map[string]time.Time
		says status.Controller
		want map[string]bool // of other and self; the leader is always active
	}{
		"all is well":                          {nil, says(10, self, leader, other), map[string]bool{self: true, leader: true, other: true}},
		"the leader hears all, this one none":  {map[string]time.Time{leader: at(0), other: at(0)}, says(10, self, leader, other), map[string]bool{self: true, leader: true, other: true}},
		"the leader misses the other":          {nil, says(10, self, leader), map[string]bool{self: true, leader: true, other: false}},
		"the leader misses this one":           {nil, says(10, leader, other), map[string]bool{self: false, leader: true, other: true}},
		"an old word about one that just went": {map[string]time.Time{other: at(9)}, says(10, self, leader, other), map[string]bool{self: true, leader: true, other: false}},
		"a word from before the leader was":    {map[string]time.Time{other: at(-5)}, says(1, leader), map[string]bool{self: true, leader: true, other: false}},
	} {
		t.Run(name, func(t *testing.T) {
			e := &Member{}
			e.watched.since, e.watched.lost = begin, tt.lost
			active := map[string]bool{self: true, leader: true, other: tt.lost[other].IsZero()}
			id, err := types.IDFromString(leader)
			if err != nil {
				t.Fatal(err)
			}
			e.believe(active, tt.says, id)
			if !maps.Equal(active, tt.want) {
				t.Errorf("got %v, want %v", active, tt.want)
			}
		})
	}
}

// told is what other controllers say.
type told struct {
	leader    string
	answering int
}

func (v told) View(context.Context, uint64, bool) (status.Controller, bool) {
	return status.Controller{}, false
}
func (v told) Elsewhere(time.Time) string { return v.leader }
func (v told) Answering() int             { return v.answering }

// The advice to give the others up is there only if so few answer that there may be no quorum
// again, and begins with the doubt if they may have one without this controller.
func TestAdvise(t *testing.T) {
	for name, tt := range map[string]struct {
		members, active int
		views           Views
		recover, doubt  bool
	}{
		"nobody answers":                    {3, 1, told{}, true, true},
		"nobody is asked":                   {3, 1, nil, true, true},
		"one answers":                       {3, 1, told{answering: 1}, false, false},
		"the others have a leader":          {3, 1, told{leader: "c2"}, false, false},
		"two of two":                        {2, 1, told{}, true, false},
		"of five, two are heard":            {5, 2, told{answering: 1}, true, true},
		"of four, one answers":              {4, 2, told{answering: 1}, true, false},
		"all are heard, and none leads yet": {3, 3, told{}, false, false},
	} {
		e := &Member{views: tt.views}
		e.hadQuorum.Store(true)
		q := status.Quorum{Members: tt.members, Needed: tt.members/2 + 1, Active: tt.active}
		e.advise(&q)
		if got := strings.Contains(q.Advice, "recover"); got != tt.recover || q.Maybe != tt.doubt {
			t.Errorf("%s: recover %v, doubt %v; want %v, %v", name, got, q.Maybe, tt.recover, tt.doubt)
		}
		if hint := q.LookFirst(q.Advice); strings.HasPrefix(hint, "the others may have a quorum: look there first; ") != tt.doubt {
			t.Errorf("%s: got the hint %q", name, hint)
		}
	}
}

// A leader counts answers of the last seconds, and nothing before it has led for as long.
func TestAnswers(t *testing.T) {
	begin := time.Now()
	w := &watched{since: begin, answered: map[string]time.Time{"b": begin.Add(9 * time.Second), "c": begin.Add(time.Second)}}
	if got := w.answers(begin.Add(time.Second)); got != nil {
		t.Errorf("a new leader: got %v, want nothing", got)
	}
	if got := w.answers(begin.Add(10 * time.Second)); !got["b"] || got["c"] {
		t.Errorf("got %v, want b only", got)
	}
}

// A leader that confirms no read is silent, and only as long as it leads.
func TestSilent(t *testing.T) {
	now := time.Now()
	w := &watched{leader: 1, confirmed: now.Add(-leaderSilence - time.Second)}
	if !w.silent(now) {
		t.Error("no read is confirmed: got an answering leader")
	}
	w.confirmed = now.Add(-time.Second)
	if w.silent(now) {
		t.Error("reads are confirmed: got a silent leader")
	}
	w.leader, w.confirmed = 0, time.Time{}
	if w.silent(now) {
		t.Error("no leader: got a silent one")
	}
}
