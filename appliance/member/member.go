// Package member defines what kthwd and its verbs exchange about the controllers of a
// cluster: the list of members, the token with which a further controller joins, and
// the requests of a join.
//
// It decides what needs no etcd: whether a removal would lose the quorum, whether a
// token is well-formed, whether two releases fit each other. The package links neither
// Kubernetes nor etcd; package appliance changes the membership.
package member

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"kthwd/appliance/config"
	"kthwd/appliance/text"
)

// Role is the role of a controller in the cluster.
type Role string

// The roles. A joining controller is not a member yet: it has a token.
const (
	Voter   Role = "voter"
	Learner Role = "learner"
	Joining Role = "joining"
)

// Member is one controller.
type Member struct {
	Name    string `json:"name"`         // the name with which it was added; its ID when the name is unknown
	Address string `json:"address"`      // the host of its peer URL
	ID      string `json:"id,omitempty"` // etcd's ID, hexadecimal; empty while it is joining
	Role    Role   `json:"role"`
	Up      bool   `json:"up"` // as List.Seen sees it
	Leader  bool   `json:"leader,omitempty"`
	Self    bool   `json:"self,omitempty"` // the controller that answers
	// Remains is how long a token remains valid, or how long a learner has to catch
	// up; 0 for other members, or when it is not known.
	Remains time.Duration `json:"remainsNanoseconds,omitempty"`
}

// List is the membership of a cluster as one of its members sees it.
type List struct {
	Members   []Member `json:"members"`
	Seen      string   `json:"seenBy,omitempty"`          // the controller that knows which members are up: the leader, where it answers
	Elsewhere string   `json:"leaderElsewhere,omitempty"` // the leader that the others have while the controller that answers has none
}

// commits tells whether the members have a leader: raft deposes one that half of them do not
// answer.
func (l List) commits() bool {
	return slices.ContainsFunc(l.Members, func(m Member) bool { return m.Leader })
}

// Voters returns the members that count for a quorum.
func (l List) Voters() (voters []Member) {
	for _, m := range l.Members {
		if m.Role == Voter {
			voters = append(voters, m)
		}
	}
	return voters
}

// Find returns the member with that name or ID.
func (l List) Find(name string) (Member, bool) {
	for _, m := range l.Members {
		if m.Name == name || m.ID != "" && m.ID == name {
			return m, true
		}
	}
	return Member{}, false
}

// Warnings lists what is allowed but probably a mistake, one line each.
func (l List) Warnings() []string { return config.EvenWarning(len(l.Voters())) }

// names lists the names of members for people.
func names(members []Member) string {
	var all []string
	for _, m := range members {
		all = append(all, m.Name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func up(members []Member) (up, down []Member) {
	for _, m := range members {
		if m.Up {
			up = append(up, m)
		} else {
			down = append(down, m)
		}
	}
	return up, down
}

// Refusal is why a change of the membership is refused, and what to do about it.
type Refusal struct {
	Text, Advice string
	Retry        bool // the change may be possible in a moment

	// Source is the address that a joiner must speak from, if it spoke from another one.
	Source string

	// Reason is a word for the counter of refusals; "" means another reason than its own ones.
	Reason string

	next bool // another controller may not refuse it
}

func (r *Refusal) Error() string { return r.Text }

// Hint returns Advice.
func (r *Refusal) Hint() string { return r.Advice }

// MayRemove returns the member to remove. With a *Refusal it refuses a removal that
// would lose the quorum, the controller that answers, and an unknown name.
func (l List) MayRemove(name string) (Member, error) {
	m, found := l.Find(name)
	switch {
	case !found:
		return m, &Refusal{Text: fmt.Sprintf("there is no member %q", name), Advice: "members: " + names(l.Members)}
	case m.Role != Voter:
		return m, nil
	case m.Self && len(l.Voters()) == 1:
		return m, &Refusal{Text: fmt.Sprintf("%s is the only controller: without it there is no cluster", m.Name)}
	case m.Self:
		others := slices.DeleteFunc(l.Voters(), func(o Member) bool { return o.Self })
		return m, &Refusal{Text: fmt.Sprintf("%s is this controller itself", m.Name), Advice: "run this on another one: " + names(others)}
	}
	return m, l.quorumWithout(m)
}

// MayAdd refuses, with a *Refusal, a further controller whose name or address another
// one has. It also refuses one when too few members are up, because etcd counts the
// new member as down until it has been seen.
func (l List) MayAdd(name, address string) error {
	for _, m := range l.Members {
		remove := "to replace it, remove it first: kthwd member remove " + m.Name
		switch {
		case m.Role == Joining && (m.Name == name) != (m.Address == address):
			return &Refusal{Text: fmt.Sprintf("there is a token for %s at %s, not for %s at %s", m.Name, m.Address, name, address),
				Advice: "to withdraw that token: kthwd member remove " + m.Name}
		case m.Role == Joining:
		case m.Name == name:
			return &Refusal{Text: fmt.Sprintf("%s is a member already, at %s", name, m.Address), Advice: remove}
		case m.Address == address:
			return &Refusal{Text: fmt.Sprintf("%s is the address of %s, which is a member already", address, m.Name), Advice: remove}
		}
	}
	all := l.Voters()
	active, down := up(all)
	if needed := (len(all)+1)/2 + 1; len(all) > 1 && len(active) < needed {
		return &Refusal{Text: fmt.Sprintf("%d of %d members are up, and %d must be up to add another one", len(active), len(all), needed),
			Advice: "bring one of these back, or remove it: " + names(down)}
	}
	return nil
}

// quorumWithout requires two quorums: one to agree on the removal, and one after it.
func (l List) quorumWithout(gone Member) error {
	all := l.Voters()
	nowUp, nowDown := up(all)
	needed, first := len(all)/2+1, ""
	if len(nowDown) >= needed {
		first = "the others may have a quorum: look there first; "
	}
	switch {
	case l.Elsewhere != "":
		return &Refusal{Text: fmt.Sprintf("this controller is cut off from the others, which have a quorum with the leader %s", l.Elsewhere),
			Advice: "run this on one of them: " + names(nowDown)}
	case len(nowUp) < needed && l.commits():
		return &Refusal{Text: fmt.Sprintf("the quorum commits, and which members take part is not known here: %d of %d are heard", len(nowUp), len(all)),
			Advice: "run this on the leader", Retry: true}
	case len(nowUp) < needed:
		return &Refusal{Text: fmt.Sprintf("%d of %d members are up, and %d are needed for any change", len(nowUp), len(all), needed),
			Advice: first + "bring one of these back: " + names(nowDown) + "; if they are lost for good: kthwd etcd recover"}
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(m Member) bool { return m.Name == gone.Name })
	restUp, restDown := up(rest)
	if needed := len(rest)/2 + 1; len(restUp) < needed {
		return &Refusal{Text: fmt.Sprintf("removing %s would lose the quorum: %d of the %d that remain are up (down: %s), and %d are needed",
			gone.Name, len(restUp), len(rest), names(restDown), needed),
			Advice: "bring one of these back first: " + names(restDown) + "; or remove a member that is down instead"}
	}
	return nil
}

// WriteTable writes the list for people.
func (l List) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tADDRESS\tROLE\tSTATE")
	for _, m := range l.Members {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", text.Line(m.Name), text.Line(m.Address), text.Line(string(m.Role)), m.state())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, l.summary())
	return err
}

func (m Member) state() string {
	parts := []string{"down"}
	if m.Up {
		parts[0] = "up"
	}
	remains := ""
	if m.Remains > 0 {
		remains = m.Remains.Truncate(time.Second).String()
	}
	switch {
	case m.Role == Joining && remains != "":
		return "its token is valid for " + remains
	case m.Role == Joining:
		return "its token has expired"
	case m.Role == Learner && m.Up:
		parts = append(parts, "catching up")
	case m.Role == Learner && remains != "":
		parts = append(parts, "removed in "+remains+" unless it catches up")
	case m.Leader:
		parts = append(parts, "leader")
	}
	return strings.Join(parts, ", ")
}

func (l List) summary() string {
	voters := l.Voters()
	active, _ := up(voters)
	needed := len(voters)/2 + 1
	s := fmt.Sprintf("%d of %d voters up, %d needed", len(active), len(voters), needed)
	switch spare := len(active) - needed; {
	case l.Elsewhere != "":
		return s + ": cut off from the others, which have a quorum with the leader " + text.Line(l.Elsewhere)
	case spare < 0 && l.commits():
		return s + ": the quorum commits, and the leader has not told which members take part"
	case spare < 0:
		return s + ": no quorum"
	case spare == 0:
		return s + ": the loss of one more would lose the quorum"
	default:
		return s + fmt.Sprintf(": the quorum survives the loss of %d more", spare)
	}
}
