package member

import (
	"strings"
	"testing"

	"kthwd/appliance/advice"
	"time"
)

// voters makes a list of c0, c1, … with a letter for each: u up, d down, l a
// learner that is up. The first one is the controller that answers.
func voters(states string) List {
	var l List
	for i, s := range states {
		m := Member{Name: "c" + string(rune('0'+i)), Address: "10.0.1." + string(rune('1'+i)), ID: "a" + string(rune('0'+i)), Role: Voter, Up: s != 'd', Self: i == 0}
		if s == 'l' {
			m.Role = Learner
		}
		l.Members = append(l.Members, m)
	}
	return l
}

func TestMayRemove(t *testing.T) {
	for _, tt := range []struct {
		list, name string
		want, hint string // of the refusal; "" when it may be removed
	}{
		{"uuu", "c2", "", ""},
		{"uud", "c2", "", ""},
		{"uu", "c1", "", ""},
		{"uul", "c2", "", ""},
		{"uddl", "c3", "", ""}, // etcd decides about learners
		{"uuu", "a2", "", ""},
		{"uuddd", "c4", "2 of 5 members are up, and 3 are needed for any change", "the others may have a quorum: look there first; bring one of these back: c2, c3, c4; if they are lost for good: kthwd etcd recover"},
		{"uud", "c1", "removing c1 would lose the quorum: 1 of the 2 that remain are up (down: c2), and 2 are needed", "bring one of these back first: c2; or remove a member that is down instead"},
		{"uuudd", "c1", "removing c1 would lose the quorum: 2 of the 4 that remain are up (down: c3, c4), and 3 are needed", "bring one of these back first: c3, c4; or remove a member that is down instead"},
		{"uuudd", "c4", "", ""},
		{"ud", "c1", "1 of 2 members are up, and 2 are needed for any change", "bring one of these back: c1; if they are lost for good: kthwd etcd recover"},
		{"uuu", "c0", "c0 is this controller itself", "run this on another one: c1, c2"},
		{"u", "c0", "c0 is the only controller: without it there is no cluster", ""},
		{"ul", "c0", "c0 is the only controller: without it there is no cluster", ""},
		{"uuu", "c9", `there is no member "c9"`, "members: c0, c1, c2"},
	} {
		t.Run(tt.list+" without "+tt.name, func(t *testing.T) {
			_, err := voters(tt.list).MayRemove(tt.name)
			got, hint := "", ""
			if err != nil {
				got = err.Error()
				hint, _ = advice.Of(err)
			}
			if got != tt.want || hint != tt.hint {
				t.Errorf("got  %q, hint %q\nwant %q, hint %q", got, hint, tt.want, tt.hint)
			}
		})
	}
}

// A quorum that commits is never answered with the advice to give it up.
func TestNoRecoverWhileTheQuorumCommits(t *testing.T) {
	cut := voters("udd")
	cut.Elsewhere = "c2"
	blind := voters("uuddd")
	blind.Members[1].Leader = true
	for name, l := range map[string]List{"cut off from a quorum": cut, "the leader's word is missing": blind} {
		gone := l.Members[len(l.Members)-1].Name
		_, err := l.MayRemove(gone)
		hint, _ := advice.Of(err)
		if err == nil || strings.Contains(hint, "recover") {
			t.Errorf("%s: got %v, hint %q", name, err, hint)
		}
		if s := l.summary(); strings.Contains(s, "no quorum") {
			t.Errorf("%s: got %q", name, s)
		}
	}
}

// Names and addresses come from join records, which any controller can write.
func TestWriteTableEscapes(t *testing.T) {
	l := List{Members: []Member{{Name: "ev\x1b]0;pwned\a\x1b[2Jil\nc0 10.0.0.1 voter up", Address: "10.0.0.9\u202e\t", Role: "voter\r"}}}
	var b strings.Builder
	if err := l.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	want := `NAME                                    ADDRESS   ROLE   STATE
ev ]0;pwned [2Jil c0 10.0.0.1 voter up  10.0.0.9  voter  down
0 of 0 voters up, 1 needed: no quorum
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

func TestWriteTable(t *testing.T) {
	l := voters("udl")
	l.Members = append(l.Members,
		Member{Name: "c3", Address: "10.0.1.4", ID: "a3", Role: Learner, Remains: 90*time.Second + time.Millisecond},
		Member{Name: "c4", Address: "10.0.1.5", Role: Joining, Remains: 10 * time.Minute})
	var b strings.Builder
	if err := l.WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	want := `NAME  ADDRESS   ROLE     STATE
c0    10.0.1.1  voter    up
c1    10.0.1.2  voter    down
c2    10.0.1.3  learner  up, catching up
c3    10.0.1.4  learner  down, removed in 1m30s unless it catches up
c4    10.0.1.5  joining  its token is valid for 10m0s
1 of 2 voters up, 2 needed: no quorum
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
	for states, want := range map[string]string{
		"uuu": "3 of 3 voters up, 2 needed: the quorum survives the loss of 1 more",
		"uud": "2 of 3 voters up, 2 needed: the loss of one more would lose the quorum",
		"u":   "1 of 1 voters up, 1 needed: the loss of one more would lose the quorum",
	} {
		if got := voters(states).summary(); got != want {
			t.Errorf("%s: got %q, want %q", states, got, want)
		}
	}
	if got := strings.Join(voters("uul").Warnings(), ";"); !strings.Contains(got, "2 controllers survive no loss") {
		t.Errorf("two voters: got the warning %q", got)
	}
}
