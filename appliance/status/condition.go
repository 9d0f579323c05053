package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/lb"
)

// condition is whether a component can do its work. A component may be ready, since its
// own parts run, and yet be unable to work: without a quorum an API server answers, and
// refuses every write.
type condition struct {
	Tone  string // good, calm, warn, bad or plain
	But   string // what the state does not say; empty if the component can do its work
	Stops bool   // what depends on the component cannot do its work either
}

// recentFailures is how long a component that has failed is shown as one that may fail
// again.
const recentFailures = 10 * time.Minute

// conditions returns the condition of each component, as of now.
func (r Report) conditions(now time.Time) map[string]condition {
	all := map[string]condition{}
	for _, c := range r.Components {
		all[c.Name] = r.condition(c, now)
	}
	// What depends on a component that cannot work cannot work either. A chain has at
	// most as many steps as there are components.
	for range r.Components {
		for _, c := range r.Components {
			for _, d := range r.Dependencies[c.Name] {
				if c.Healthy() && all[d].Stops && !all[c.Name].Stops {
					all[c.Name] = condition{"warn", "needs " + d, true}
				}
			}
		}
	}
	return all
}

// condition judges a component by itself.
func (r Report) condition(c supervise.Status, now time.Time) condition {
	own := r.work(c)
	for _, f := range r.Findings { // worst first
		if f.concerns(c.Name) && rank[f.Health] > rank[Healthy] {
			own.Tone, own.Stops = worse(own.Tone, toneOf(f.Health)), own.Stops || f.Health == Down
			if own.But == "" {
				own.But = "see the problem above"
			}
			break
		}
	}
	if n := r.failures(c.Name, now); n > 0 && own.But == "" {
		own.Tone, own.But = "warn", fmt.Sprintf("failed %d× in %d min", n, recentFailures/time.Minute)
	}
	if !c.Healthy() {
		own.But = "" // its state and its reason say it
	}
	return own
}

// work judges a component by its state and by what it is there for.
func (r Report) work(c supervise.Status) condition {
	switch {
	case c.Name == program.LB && r.LB != nil && !r.HandedOver && c.Healthy():
		return balances(r.LB.Backends)
	case r.lacksQuorum() && (c.Name == program.Etcd || c.Name == program.APIServer):
		return condition{"bad", "no quorum, no writes", true}
	}
	return condition{Tone: tones[string(c.State)], Stops: !c.Healthy()}
}

// balances returns the condition of a load balancer with these backends.
func balances(all []lb.BackendStatus) condition {
	ready, held, bad := 0, 0, 0
	for _, b := range all {
		if b.State == "held" {
			held++
		}
		switch tones[b.State] {
		case "good", "calm":
			ready++
		case "bad":
			bad++
		}
	}
	switch {
	case ready == 0 && held > 0:
		return condition{Tone: "warn", But: "no backend is ready, and those held down are used"}
	case ready == 0:
		return condition{Tone: "bad", But: "no backend is ready"}
	case bad > 0 || ready < len(all):
		return condition{Tone: "warn", But: fmt.Sprintf("%d of %d backends ready", ready, len(all))}
	}
	return condition{Tone: "good"}
}

// toneOf maps the health of a finding, or of the process, to a tone.
func toneOf(h Health) string {
	switch h {
	case Healthy:
		return "good"
	case Degraded:
		return "warn"
	}
	return "bad"
}

// worse returns the worse of two tones.
func worse(a, b string) string {
	order := []string{"plain", "good", "calm", "warn", "bad"}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// lacksQuorum reports whether etcd has members, and no leader that answers.
func (r Report) lacksQuorum() bool {
	return r.Quorum != nil && (r.Quorum.Leader == "" || r.Quorum.Silent)
}

// concerns reports whether a finding is about a component: its text begins with the name.
func (f Finding) concerns(component string) bool {
	for text, more := f.Text, true; more; {
		rest, found := strings.CutPrefix(text, component)
		if found && (rest == "" || strings.ContainsAny(rest[:1], " :,'")) {
			return true
		}
		var other string
		if other, text, more = strings.Cut(text, " and "); strings.Contains(other, " ") {
			return false // the end of "one and another are starting"
		}
	}
	return false
}

// failures counts the recent terms of a component that ended in a failure.
func (r Report) failures(component string, now time.Time) (n int) {
	for _, e := range r.Events {
		if e.Object == component && e.RestartReason != "" && now.Sub(e.Time) < recentFailures {
			n++
		}
	}
	return n
}
