package supervise

import (
	"context"
	"maps"
	"sync"
	"time"
)

// State is a phase in the life of a component.
type State string

// The states of a component. A component that was asked to stop ends as Stopped,
// whatever it returns. One that returns unasked, or exceeds its stop budget, ends as
// Failed.
const (
	Waiting  State = "waiting"  // alive, but blocked by something outside: a dependency, a quorum
	Starting State = "starting" // working towards ready, for the first time or again
	Ready    State = "ready"    // serving
	Standby  State = "standby"  // healthy, but another controller holds the lease
	Stopping State = "stopping"
	Stopped  State = "stopped"
	Failed   State = "failed"
)

// Healthy reports whether the component is ready or standby.
func (s Status) Healthy() bool { return s.State == Ready || s.State == Standby }

// Status is a copy of the record of one component.
type Status struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Since     time.Time `json:"since"`               // when State was entered
	Reason    string    `json:"reason,omitempty"`    // why it is in State, one line
	LastError string    `json:"lastError,omitempty"` // the newest failure, kept after recovery
	Restarts  int       `json:"restarts"`            // terms that ended in a failure and were started again in process
	// RestartReason is the kind of failure, as given to Restarted, from which a
	// component in Starting recovers; empty otherwise.
	RestartReason string        `json:"restartReason,omitempty"`
	Cause         string        `json:"cause,omitempty"`     // the error that explains the state, as its origin words it; empty if none is known
	CauseSince    time.Time     `json:"causeSince,omitzero"` // when that error began
	Took          time.Duration `json:"tookNanoseconds"`     // start of Run to first ready; 0 before that
	ReadyAt       time.Duration `json:"readyAtNanoseconds"`  // start of the group to first ready; 0 before that
}

// Reporter writes to the record of one component. The zero value writes nowhere, so
// that a test can run a component without a Group.
type Reporter struct {
	g *Group
	n *Node
}

type reporterKey struct{}

// Report returns the Reporter of the component whose Run received ctx.
func Report(ctx context.Context) Reporter {
	r, _ := ctx.Value(reporterKey{}).(Reporter)
	return r
}

// Waiting records that the component is blocked by something outside, and by what.
func (r Reporter) Waiting(reason string) { r.set(Waiting, reason) }

// Starting records that the component works towards serving again.
func (r Reporter) Starting(reason string) { r.set(Starting, reason) }

// Standby records that the component is healthy while another controller leads.
func (r Reporter) Standby(reason string) { r.set(Standby, reason) }

// Ready records that the component serves, for the first time or again. It does not
// start the component's dependents: only the ready function given to Run does.
func (r Reporter) Ready(reason string) { r.set(Ready, reason) }

// Restarted counts a term that ended in err and will start again. reason is one word
// for the kind of error, by which Restarts counts.
func (r Reporter) Restarted(reason string, err error) {
	if r.g == nil {
		return
	}
	r.g.rec.update(r.n, func(s *Status) {
		if r.n.reasons == nil {
			r.n.reasons = map[string]int{}
		}
		r.n.reasons[reason]++
		s.Restarts++
		s.RestartReason = reason
		s.LastError = err.Error()
	})
}

// Failing records the newest error of work that the component repeats, such as the renewal
// of a lease, and the time of the first one; nil after a success. The state does not change.
func (r Reporter) Failing(err error) {
	if r.g == nil {
		return
	}
	r.g.rec.update(r.n, func(s *Status) {
		switch {
		case err == nil:
			s.Cause, s.CauseSince = "", time.Time{}
			return
		case s.Cause == "":
			s.CauseSince = r.g.now()
		}
		s.Cause = err.Error()
	})
}

func (r Reporter) set(state State, reason string) {
	if r.g == nil {
		return
	}
	r.g.rec.update(r.n, func(s *Status) {
		switch s.State {
		case Stopping, Stopped, Failed:
			return // only the group records the end of a component
		}
		s.enter(state, reason, r.g.now())
	})
}

// enter puts the component into a state at now; it may be in it already.
func (s *Status) enter(state State, reason string, now time.Time) {
	if s.State != state || s.Since.IsZero() {
		s.State, s.Since = state, now
	}
	if state != Starting {
		s.RestartReason = ""
	}
	s.Reason = reason
}

// record guards the states of all components.
type record struct {
	mu      sync.Mutex
	changed chan struct{}
}

func (r *record) update(n *Node, f func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := n.status
	f(&n.status)
	if n.status == before {
		return
	}
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// Changed returns a channel that is closed at the next change of the record. Get the
// channel before reading the record, so as to miss no change.
func (g *Group) Changed() <-chan struct{} {
	g.rec.mu.Lock()
	defer g.rec.mu.Unlock()
	if g.rec.changed == nil {
		g.rec.changed = make(chan struct{})
	}
	return g.rec.changed
}

// Follow calls f with the result of Ready, now and after each change of the record,
// until ctx ends.
func (g *Group) Follow(ctx context.Context, f func(ready bool, reason string)) {
	for {
		changed := g.Changed()
		f(g.Ready())
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Status copies the record, in the order of Add.
func (g *Group) Status() []Status {
	g.rec.mu.Lock()
	defer g.rec.mu.Unlock()
	all := make([]Status, len(g.nodes))
	for i, n := range g.nodes {
		all[i] = n.status
	}
	return all
}

// Restarts returns the number of restarts by component and reason.
func (g *Group) Restarts() map[string]map[string]int {
	g.rec.mu.Lock()
	defer g.rec.mu.Unlock()
	all := map[string]map[string]int{}
	for _, n := range g.nodes {
		if len(n.reasons) > 0 {
			all[n.status.Name] = maps.Clone(n.reasons)
		}
	}
	return all
}

// Dependencies returns the names of each component's dependencies.
func (g *Group) Dependencies() map[string][]string {
	all := map[string][]string{}
	for _, n := range g.nodes {
		for _, d := range n.after {
			all[n.component.Name()] = append(all[n.component.Name()], d.component.Name())
		}
	}
	return all
}

// Ready reports whether every component is ready or standby. If not, reason names the
// first one, in the order of Add, that is not, and why:
// "etcd: waiting for etcd quorum (1 of 3)".
func (g *Group) Ready() (ok bool, reason string) {
	if g.leaving.Err() != nil {
		return false, "stopping"
	}
	for _, s := range g.Status() {
		if !s.Healthy() {
			return false, s.describe()
		}
	}
	return true, ""
}

func (s Status) describe() string {
	if s.Reason == "" {
		return s.Name + ": " + string(s.State)
	}
	return s.Name + ": " + s.Reason
}
