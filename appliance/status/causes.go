package status

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/cause"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
)

// The kinds of findings of Assess. A finding with a known cause has the kind of its cause
// (cause.Kinds), and a watcher names its own.
const (
	kindComponent   = "component"
	kindNotReady    = "not_ready"
	kindQuorum      = "quorum"
	kindMember      = "member"
	kindPeerCut     = "peer_cut"
	kindEvenMembers = "even_members"
	kindFsync       = "fsync"
	kindDefrag      = "etcd_defrag"
	kindEtcdAlarm   = "etcd_alarm"
	kindBackends    = "backends"
	kindBackendName = "backend_name"
	kindHeld        = "held_clients"
	kindLimit       = "lb_limit"
	kindDiscovery   = "discovery"

	kindMetricsClients       = "metrics_clients"
	kindDiscoveryCertificate = "discovery_certificate"
)

// Kinds lists the kinds of findings of Assess with their meaning, without those of causes.
// docs/operations/status.md has both tables.
var Kinds = []struct{ Kind, Means string }{
	{kindComponent, "a component does not work, and the cause has no kind of its own"},
	{kindNotReady, "the process is not ready, without a component that explains it"},
	{kindQuorum, "etcd has no quorum"},
	{kindMember, "a member of etcd cannot be reached"},
	{kindPeerCut, "a member of etcd takes part in the quorum, and this controller cannot connect to it"},
	{kindEvenMembers, "etcd has an even number of members"},
	{kindFsync, "the disk under etcd is slow"},
	{kindDefrag, "etcd defragments its database"},
	{kindEtcdAlarm, "etcd has an alarm other than the one about space"},
	{kindBackends, "backends of the load balancer are not ready"},
	{kindHeld, "clients of the load balancer wait for a backend"},
	{kindDiscovery, "no API server returns the list of backends"},
	{kindMetricsClients, "the web configuration of the metrics address asks for client certificates, and takes more of them than it seems to"},
	{kindDiscoveryCertificate, "the certificate with which the load balancer follows the list is due and cannot be renewed"},
}

// alarmSpace is etcd's alarm about its quota.
const alarmSpace = "NOSPACE"

// shared is a known cause, and the programs that it keeps from their work.
type shared struct {
	cause.Cause
	names  []string
	state  supervise.State // of all of them; empty if they differ or work
	health Health
	since  time.Time
}

// components adds a finding for each program that does not work, and for each lasting fault
// that a working one meets. Programs with the same known cause share one finding.
func (a *assessment) components(r Report) {
	quorum := r.Quorum == nil || r.Quorum.Leader != "" // quorum reports the lack of one
	for _, k := range a.known(r, quorum) {
		a.findings = append(a.findings, Finding{Health: k.health, Kind: k.Kind, Text: text.Line(k.sentence()), Do: text.Line(k.Do), Since: k.since})
	}
	if !r.Ready && len(a.findings) == 0 && quorum {
		a.add(Down, kindNotReady, "", "not ready: %s", r.Reason)
	}
}

// known returns the known causes of faults. It adds a finding for each fault without one.
func (a *assessment) known(r Report, quorum bool) (all []*shared) {
	for _, s := range r.Components {
		if !quorum && r.needsQuorum(s) || r.waitsForAnother(s) {
			continue
		}
		c, ok := r.causeOf(s)
		switch {
		case ok && r.saidElsewhere(c, s):
		case ok && (c.Lasting || !s.Healthy()):
			all = together(all, c, s)
		case !s.Healthy():
			a.unexplained(r, s)
		}
	}
	return all
}

// waitsForAnother reports whether a component only waits for one that does not work, which
// has a finding of its own.
func (r Report) waitsForAnother(s supervise.Status) bool {
	return s.State == supervise.Waiting && slices.ContainsFunc(r.Components, func(d supervise.Status) bool {
		return !d.Healthy() && slices.Contains(r.Dependencies[s.Name], d.Name)
	})
}

// causeOf returns the known cause of a component's trouble.
func (r Report) causeOf(s supervise.Status) (cause.Cause, bool) {
	errors := s.Cause
	if errors == "" && s.State == supervise.Starting {
		errors = s.LastError
	}
	return cause.Of(errors, r.Names)
}

// saidElsewhere reports whether another finding tells this cause: the alarm of etcd, or a
// watcher that looks at the very object.
func (r Report) saidElsewhere(c cause.Cause, s supervise.Status) bool {
	if c.Kind == cause.EtcdSpace && r.Member != nil && slices.Contains(r.Member.Alarms, alarmSpace) {
		return true
	}
	return s.Healthy() && slices.ContainsFunc(r.Observed, func(f Finding) bool { return f.Kind == c.Kind })
}

// together adds a component to those with the same cause.
func together(all []*shared, c cause.Cause, s supervise.Status) []*shared {
	i := slices.IndexFunc(all, func(k *shared) bool { return k.Kind == c.Kind && k.Text == c.Text })
	if i < 0 {
		i, all = len(all), append(all, &shared{Cause: c, state: s.State, health: Degraded})
	}
	k := all[i]
	k.names = append(k.names, s.Name)
	if s.Healthy() || k.state != s.State {
		k.state = ""
	}
	if !s.Healthy() {
		k.health = worseHealth(k.health, severity(s))
	}
	if since := began(s); k.since.IsZero() || since.Before(k.since) {
		k.since = since
	}
	return all
}

// began is when the trouble of a component began.
func began(s supervise.Status) time.Time {
	if s.Cause != "" && !s.CauseSince.IsZero() {
		return s.CauseSince
	}
	return s.Since
}

// sentence is the text of a finding about a known cause.
func (k *shared) sentence() string {
	who := strings.Join(k.names, " and ")
	switch {
	case k.state == "":
		return who + ": " + k.Text
	case len(k.names) == 1:
		return who + " is " + string(k.state) + ": " + k.Text
	default:
		return who + " are " + string(k.state) + ": " + k.Text
	}
}

// unexplained adds the finding of a component whose error has no known cause: the error.
func (a *assessment) unexplained(r Report, s supervise.Status) {
	said := s.Name + " is " + string(s.State)
	if s.Reason != "" && s.Reason != s.LastError {
		said += ": " + s.Reason
	}
	do := ""
	switch s.State {
	case supervise.Failed:
		do = "read the last lines of the log; systemd restarts kthwd"
	case supervise.Starting, supervise.Waiting:
		if last := cmp.Or(s.Cause, s.LastError); last != "" {
			if !strings.Contains(said, last) {
				said += "; last error: " + last
			}
			do = "it tries again by itself; journalctl --unit=" + r.Names.UnitName() + " --lines=100"
		}
	}
	a.findings = append(a.findings, Finding{Health: severity(s), Kind: kindComponent, Text: text.Line(said), Do: do, Since: began(s)})
}

// severity is the health of a process with a component that does not work.
func severity(s supervise.Status) Health {
	if slices.Contains(essential, s.Name) {
		return Down
	}
	return Degraded
}

func worseHealth(a, b Health) Health {
	if rank[b] > rank[a] {
		return b
	}
	return a
}

// ofEtcd returns the known cause that etcd's own code has logged, and when it began.
func (r Report) ofEtcd() (c cause.Cause, since time.Time) {
	for _, s := range r.Components {
		if s.Name == program.Etcd {
			c, _ := r.causeOf(s)
			return c, began(s)
		}
	}
	return cause.Cause{}, time.Time{}
}
