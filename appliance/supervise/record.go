package supervise

import (
	"context"
	"maps"
	"sync"
	"time"
)

// State is where a component is in its life.
type State string

// The states of a component. A component that was asked to stop ends Stopped,
// whatever it returned; one that returned without being asked ends Failed.
const (
	Waiting  State = "waiting"  // alive, held up by something outside: a dependency, a quorum
	Starting State = "starting" // working towards its first ready
	Ready    State = "ready"    // serving
	Standby  State = "standby"  // healthy, but another controller holds the lease
	Stopping State = "stopping"
	Stopped  State = "stopped"
	Failed   State = "failed"
)

// Healthy tells whether the component holds up its part: ready, or standby.
func (s Status) Healthy() bool { return s.State == Ready || s.State == Standby }

// Status is a copy of what is known of one component.
type Status struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Since     time.Time `json:"since"`               // when State was entered
	Reason    string    `json:"reason,omitempty"`    // why it is in State, one line
	LastError string    `json:"lastError,omitempty"` // the newest failure, kept after recovery
	Restarts  int       `json:"restarts"`            // terms ended by a failure and begun again in process
	// RestartReason is the kind of failure, as given to Restarted, from which a
	// component in Starting recovers; empty otherwise.
	RestartReason string        `json:"restartReason,omitempty"`
	Took          time.Duration `json:"tookNanoseconds"`    // start of Run to first ready; 0 before that
	ReadyAt       time.Duration `json:"readyAtNanoseconds"` // start of the group to first ready; 0 before that
}

// Reporter is a component's pen in the record. The zero value writes nowhere,
// so that a component can be run without a Group in a test.
type Reporter struct {
	g *Group
	n *Node
}

type reporterKey struct{}

// Report finds the Reporter of the component whose Run was given ctx.
func Report(ctx context.Context) Reporter {
	r, _ := ctx.Value(reporterKey{}).(Reporter)
	return r
}

// Waiting says that the component is held up by something outside, and by what.
func (r Reporter) Waiting(reason string) { r.set(Waiting, reason) }

// Starting says that the component works towards serving again.
func (r Reporter) Starting(reason string) { r.set(Starting, reason) }

// Standby says that the component is healthy but another one leads.
func (r Reporter) Standby(reason string) { r.set(Standby, reason) }

// Ready says that the component serves (again). It does not start the
// component's dependents: only the ready function given to Run does.
func (r Reporter) Ready(reason string) { r.set(Ready, reason) }

// Restarted counts a term that ended in err and will be begun again. reason is
// one word for the kind of error, as counted by Restarts.
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

func (r Reporter) set(state State, reason string) {
	if r.g == nil {
		return
	}
	r.g.rec.update(r.n, func(s *Status) {
		switch s.State {
		case Stopping, Stopped, Failed:
			return // the end of a life is the group's to write
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

// record is the one place where component states live.
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

// Changed returns a channel that is closed at the next change of the record.
// Take the channel first, then read the record, and no change is missed.
func (g *Group) Changed() <-chan struct{} {
	g.rec.mu.Lock()
	defer g.rec.mu.Unlock()
	if g.rec.changed == nil {
		g.rec.changed = make(chan struct{})
	}
	return g.rec.changed
}

// Follow calls f with what Ready says, now and after each change of the record,
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

// Restarts counts, for each component that has had any, its restarts by reason.
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

// Dependencies names, for each component that has any, what it was added after.
func (g *Group) Dependencies() map[string][]string {
	all := map[string][]string{}
	for _, n := range g.nodes {
		for _, d := range n.after {
			all[n.component.Name()] = append(all[n.component.Name()], d.component.Name())
		}
	}
	return all
}

// Ready tells whether every component is ready or standby. When not, reason
// names the first one, in the order of Add, that is not, and why:
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
