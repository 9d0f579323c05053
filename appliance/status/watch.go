package status

import (
	"context"
	"slices"
	"sync"
	"time"

	"kthwd/appliance/program"
	"kthwd/appliance/text"
	"kthwd/lb"
)

const (
	watchInterval = 5 * time.Second  // poll for changes that are not announced, such as of backends
	rateWindow    = 15 * time.Second // time over which rates are measured
	maxEvents     = 50
)

// watcher keeps the last changes and the samples from which rates are computed.
type watcher struct {
	mu      sync.Mutex
	last    Report
	events  []Event // oldest first
	samples []lbSample
}

// lbSample is the counters of all backends at one time.
type lbSample struct {
	at       time.Time
	backends []lb.BackendStatus
}

// watch reads report now, after each change and every watchInterval, until ctx ends.
// It calls tell, unless nil, with each event, and sample after each reading. changed may be
// nil.
func (w *watcher) watch(ctx context.Context, report func() Report, changed func() <-chan struct{}, tell func(Event), sample func(time.Time)) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var next <-chan struct{}
		if changed != nil {
			next = changed()
		}
		for _, e := range w.see(report(), time.Now()) {
			if tell != nil {
				tell(e)
			}
		}
		sample(time.Now())
		select {
		case <-next:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// see records the changes since the previous report and returns them.
func (w *watcher) see(r Report, now time.Time) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := changes(w.last, r, now)
	w.last = r
	w.events = append(w.events, news...)
	w.events = w.events[max(0, len(w.events)-maxEvents):]
	if r.LB != nil {
		w.samples = append(w.samples, lbSample{now, r.LB.Backends})
		for len(w.samples) > 2 && now.Sub(w.samples[1].at) >= rateWindow {
			w.samples = w.samples[1:]
		}
	}
	return news
}

// complete adds events and rates to a report.
func (w *watcher) complete(r *Report, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.Events = slices.Clone(w.events)
	slices.Reverse(r.Events)
	if r.LB != nil && len(w.samples) > 0 {
		r.Rates = rates(w.samples[0], lbSample{now, r.LB.Backends})
	}
}

// rates returns the traffic per second of each backend between two samples.
func rates(from, to lbSample) map[string]Rate {
	seconds := to.at.Sub(from.at).Seconds()
	if seconds < 0.5 {
		return nil
	}
	before := map[string]lb.BackendStatus{}
	for _, b := range from.backends {
		before[b.Address] = b
	}
	all := map[string]Rate{}
	for _, b := range to.backends {
		was, known := before[b.Address]
		if !known || b.Total < was.Total {
			continue
		}
		all[b.Address] = Rate{
			Connections: float64(b.Total-was.Total) / seconds,
			Received:    float64(b.Received-was.Received) / seconds,
			Sent:        float64(b.Sent-was.Sent) / seconds,
		}
	}
	return all
}

// The objects of events that are not components, and the states of a quorum.
const (
	ObjectQuorum = "etcd quorum"
	objectLeader = "etcd leader"
	QuorumLost   = "lost"
	QuorumThere  = "there"
)

// changes lists the differences between two reports of one process.
func changes(before, after Report, now time.Time) (all []Event) {
	was := map[string]string{}
	for _, c := range before.Components {
		was[c.Name] = string(c.State)
	}
	for _, c := range after.Components {
		if from, known := was[c.Name]; known && from != string(c.State) || !known && before.PID == 0 {
			if !known && c.Since.IsZero() {
				continue
			}
			all = append(all, Event{Time: c.Since, Object: c.Name, From: from, To: string(c.State), Reason: text.Line(c.Reason), RestartReason: c.RestartReason})
		}
	}
	all = append(all, memberChanges(before.Member, after.Member, before.Quorum, after.Quorum, now)...)
	for _, l := range after.Leases {
		i := slices.IndexFunc(before.Leases, func(b Lease) bool { return b.Name == l.Name })
		if i >= 0 && before.Leases[i].Holder != l.Holder && l.Holder != "" {
			all = append(all, Event{Time: l.Since, Object: "lease of " + l.Name, From: before.Leases[i].Holder, To: l.Holder})
		}
	}
	return append(all, backendChanges(before.LB, after.LB, now)...)
}

func memberChanges(before, after *Member, was, is *Quorum, now time.Time) (all []Event) {
	if was != nil && is != nil && was.Leader != is.Leader {
		switch {
		case is.Leader == "":
			all = append(all, Event{Time: now, Object: ObjectQuorum, To: QuorumLost, Reason: is.Note})
		case was.Leader == "" && was.Members > 0:
			all = append(all, Event{Time: now, Object: ObjectQuorum, To: QuorumThere, Reason: "leader " + text.Line(is.Leader)})
		case was.Leader != "":
			all = append(all, Event{Time: now, Object: objectLeader, From: text.Line(was.Leader), To: text.Line(is.Leader)})
		}
	}
	if before == nil || after == nil {
		return all
	}
	seen := map[string]MemberInfo{}
	for _, m := range before.Members {
		seen[m.ID] = m
	}
	word := map[bool]string{true: "connected", false: "not connected"}
	for _, m := range after.Members {
		old, known := seen[m.ID]
		delete(seen, m.ID)
		object := "etcd member " + text.Line(m.Name)
		switch {
		case !known:
			all = append(all, Event{Time: now, Object: object, To: "added"})
		case old.Active != m.Active:
			all = append(all, Event{Time: now, Object: object, From: word[old.Active], To: word[m.Active]})
		}
	}
	for _, m := range seen {
		all = append(all, Event{Time: now, Object: "etcd member " + text.Line(m.Name), To: "removed"})
	}
	return all
}

func backendChanges(before, after *lb.Status, now time.Time) (all []Event) {
	if before == nil || after == nil {
		return nil
	}
	was := map[string]lb.BackendStatus{}
	for _, b := range before.Backends {
		was[b.Address] = b
	}
	for _, b := range after.Backends {
		old, known := was[b.Address]
		delete(was, b.Address)
		object := "backend " + text.Line(b.Address)
		switch {
		case !known:
			all = append(all, Event{Time: now, Object: object, To: "added"})
		case old.State != b.State:
			at := b.Since
			if at.IsZero() || at.Before(old.Since) {
				at = now
			}
			all = append(all, Event{Time: at, Object: object, From: old.State, To: b.State, Reason: text.Line(b.Reason)})
		}
	}
	for address := range was {
		all = append(all, Event{Time: now, Object: "backend " + text.Line(address), To: "removed"})
	}
	if before.FailOpen != after.FailOpen {
		all = append(all, Event{Time: now, Object: program.LB, To: map[bool]string{true: "fails open", false: "chooses among backends that pass their checks"}[after.FailOpen]})
	}
	return all
}
