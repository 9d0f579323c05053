package status

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/cause"
	"kthwd/appliance/pki"
	"kthwd/appliance/program"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/lb"
	"kthwd/lb/check"
)

// Health is the state of a kthwd process in one word.
type Health string

// The values of Health. A degraded process works, but less well than it should or
// not for long. A process that is down does not fulfil its purpose.
const (
	Healthy  Health = "healthy"
	Degraded Health = "degraded"
	Down     Health = "down"
)

// Finding is one fact that an operator should know, with what to do about it.
type Finding struct {
	Health Health    `json:"health"`         // the process's health if this were the only finding; healthy marks mere advice
	Kind   string    `json:"kind,omitempty"` // one word for the kind of finding, for scripts, metrics and alerts
	Text   string    `json:"text"`           // a sentence: the cause, where it is known
	Do     string    `json:"do,omitempty"`   // a command that can be typed as it stands, or advice
	Since  time.Time `json:"since,omitzero"` // when it began; zero where that is unknown
}

// Spelled returns the report with its remedies spelled by f, which names this program as a
// person types it here. A nil f changes nothing, and r keeps its own.
func (r Report) Spelled(f func(string) string) Report {
	r.Findings = spelled(r.Findings, f)
	return r
}

func spelled(all []Finding, f func(string) string) []Finding {
	if f == nil {
		return all
	}
	all = slices.Clone(all)
	for i := range all {
		all[i].Do = f(all[i].Do)
	}
	return all
}

// The thresholds of findings.
const (
	fsyncBad   = 500 * time.Millisecond // half an election timeout, and the threshold of the alert in etcd's own rules
	fsyncSlow  = 100 * time.Millisecond // a heartbeat: a write of the leader then delays the next heartbeat
	fsyncWord  = 25 * time.Millisecond  // etcd recommends less than 10 ms
	fsyncLeast = 100                    // number of calls from which a 99th percentile is meaningful
	fsyncBusy  = 0.5                    // share of the time in which etcd does nothing but wait for the disk
	fsyncMany  = 3                      // slow calls, of which one may be a hiccup, ...
	fsyncShare = 0.1                    // ... that take this share of the time
	quotaShare = 0.8
	certWord   = 30 * 24 * time.Hour
	certSoon   = 7 * 24 * time.Hour
)

// Assess derives findings from r as of now, worst first, and the overall health. It
// reads nothing but r.
func Assess(r Report, now time.Time) (Health, []Finding) {
	var a assessment
	a.components(r)
	a.quorum(r)
	a.cuts(r)
	a.member(r)
	a.balancer(r)
	a.certificates(r, now)
	a.observed(r)
	a.lastRun(r, now)
	slices.SortStableFunc(a.findings, func(x, y Finding) int { return rank[y.Health] - rank[x.Health] })
	health := Healthy
	for _, f := range a.findings {
		if rank[f.Health] > rank[health] {
			health = f.Health
		}
	}
	return health, a.findings
}

var rank = map[Health]int{Healthy: 0, Degraded: 1, Down: 2}

type assessment struct{ findings []Finding }

func (a *assessment) add(h Health, kind, do, format string, args ...any) {
	a.findings = append(a.findings, Finding{Health: h, Kind: kind, Text: text.Line(fmt.Sprintf(format, args...)), Do: do})
}

// essential lists the components without which clients are not served.
var essential = []string{program.Etcd, program.APIServer, program.LB}

func (a *assessment) observed(r Report) {
	for _, f := range r.Observed {
		f.Text, f.Do = text.Line(f.Text), text.Line(f.Do)
		a.findings = append(a.findings, f)
	}
}

// lastRunWord is how long a bad end of the run before is told.
const lastRunWord = 24 * time.Hour

func (a *assessment) lastRun(r Report, now time.Time) {
	if l := r.LastRun; l != nil && !l.Good() && now.Sub(r.Started) < lastRunWord {
		a.findings = append(a.findings, Finding{Health: Healthy, Kind: "last_run", Text: text.Line("the last run: " + l.Text), Do: l.Do, Since: l.At})
	}
}

// needsQuorum reports whether the lack of a quorum explains the state of a component:
// it waits for one, is the API server, or has lost its lease, which cannot be renewed
// without a quorum.
func (r Report) needsQuorum(s supervise.Status) bool {
	return s.State == supervise.Waiting || s.Name == program.APIServer ||
		s.State == supervise.Starting && slices.ContainsFunc(r.Leases, func(l Lease) bool { return l.Name == s.Name })
}

func (a *assessment) quorum(r Report) {
	q := r.Quorum
	switch {
	case q == nil || q.Members == 0:
	case q.Leader == "" && q.Elsewhere != "":
		a.add(Down, kindQuorum, "let this controller and the others reach each other's etcd peer port; no data is lost meanwhile",
			"%s is cut off from etcd's quorum, which the others have, with the leader %s; nothing can be written here", r.here(), q.Elsewhere)
	case q.Silent && q.Leader != "":
		a.add(Down, kindQuorum, "let this controller and the others reach each other's etcd peer port, and look at "+q.Leader+" with kthwd status there",
			"etcd's leader %s does not answer %s: nothing can be written here", q.Leader, r.here())
	case q.Leader == "":
		do := q.LookFirst("start the other controllers, and check that they can reach each other's etcd peer port; no data is lost meanwhile")
		if q.Advice != "" {
			do += "; " + q.Advice
		}
		a.add(Down, kindQuorum, do,
			"etcd has no quorum: %d of %d members can be reached, %d are needed; nothing can be written", q.Active, q.Members, q.Needed)
		a.because(r)
	case q.Active < q.Members:
		a.add(Degraded, kindMember, "bring it back before another one fails", "%s cannot be reached: %d of %d etcd members are reachable%s, %d are needed",
			missing(r.Member), q.Active, q.Members, r.seenBy(), q.Needed)
		a.because(r)
	case q.Members%2 == 0:
		a.add(Healthy, kindEvenMembers, "", "etcd has %d members: one member fewer survives as many failures", q.Members)
	}
}

// seenBy names the controller that has counted the members, if it is another one.
func (r Report) seenBy() string {
	if q := r.Quorum; q != nil && q.Seen != "" && q.Seen != r.Name {
		return " from the leader " + q.Seen
	}
	return ""
}

// here is the name of this controller.
func (r Report) here() string { return cmp.Or(r.Name, "this controller") }

// cuts adds a finding for each member that takes part in the quorum without a connection to
// this one: the connections are cut in one direction, or between two followers.
func (a *assessment) cuts(r Report) {
	if r.Member == nil || r.Quorum == nil || r.Quorum.Leader == "" {
		return
	}
	for _, m := range r.Member.Members {
		if m.Unheard.IsZero() || !m.Active {
			continue
		}
		but := fmt.Sprintf("%s takes part in the quorum that %s leads", m.Name, r.Quorum.Leader)
		if m.Leader {
			but = m.Name + " leads and commits"
		}
		a.add(Degraded, kindPeerCut, fmt.Sprintf("let %s reach the etcd peer port at %s; requests are served meanwhile", r.here(), strings.Join(m.URLs, ", ")),
			"%s does not hear %s, but %s", r.here(), m.Name, but)
		a.since(m.Unheard)
	}
}

// because completes the last finding, about members that cannot be reached, with what etcd's
// own code says about them.
func (a *assessment) because(r Report) {
	c, since := r.ofEtcd()
	if c.Kind == "" {
		return
	}
	a.since(since)
	f := &a.findings[len(a.findings)-1]
	switch c.Kind {
	case cause.Refused, cause.EtcdLeader, cause.EtcdTimeout: // what the finding says anyway
		f.Text += text.Line(": " + c.Text)
	default:
		f.Text, f.Do = f.Text+text.Line(": "+c.Text), text.Line(c.Do)
	}
}

// missing lists the voting members that are not connected.
func missing(m *Member) string {
	var names []string
	if m != nil {
		for _, p := range m.Members {
			if !p.Active && !p.Learner {
				name := p.Name
				if name == "" {
					name = p.ID + " (never started)"
				}
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return "a member of etcd"
	}
	return strings.Join(names, " and ")
}

func (a *assessment) member(r Report) {
	m := r.Member
	if m == nil {
		return
	}
	a.disk(m.Fsync, cmp.Or(r.Names.LogFlag, "--etcd-data-dir"))
	if !m.Defragmenting.IsZero() {
		a.add(Healthy, kindDefrag, "", "etcd defragments its database here: this controller's clients are served by others until it is done, and alone they wait")
		a.since(m.Defragmenting)
	}
	for _, alarm := range m.Alarms {
		if alarm == alarmSpace {
			a.add(Down, cause.EtcdSpace, r.Names.Kthwd(reclaimSpace), "etcd has the alarm %s: its database has reached its quota of %s, and nothing can be written", alarm, text.Bytes(m.Quota))
			continue
		}
		a.add(Down, kindEtcdAlarm, "stop this member and compare its data with the others' before anything is written", "etcd has the alarm %s", alarm)
	}
	if m.Quota > 0 && float64(m.Size) >= quotaShare*float64(m.Quota) && len(m.Alarms) == 0 {
		a.add(Degraded, cause.EtcdSpace, r.Names.Kthwd(reclaimSpace),
			"etcd's database is at %s of %s; at its quota it accepts no more writes", text.Bytes(m.Size), text.Bytes(m.Quota))
	}
}

// reclaimSpace is the verb that makes room in etcd's database.
const reclaimSpace = "etcd space --fix"

// disk judges by the time that was spent, by slow calls, and only then by a percentile: on
// the slowest disk there are too few calls for one. The disk is that of etcd's log, which flag names.
func (a *assessment) disk(f Latency, flag string) {
	h, says, is := Healthy, fmt.Sprintf("etcd fsync p99 is %d ms", f.P99.Milliseconds()), "the disk is slower than etcd recommends (10 ms)"
	switch {
	case f.waiting():
		h, says = Degraded, fmt.Sprintf("etcd waits for its disk %d %% of the time, %d ms a write", int(100*f.busy()), f.Spent.Milliseconds()/int64(f.Count))
	case f.Count < fsyncLeast || f.P99 < fsyncWord:
		return
	case f.P99 >= fsyncBad:
		h = Degraded
	}
	if f.slow() {
		is = "the disk is too slow: leases and leadership may be lost"
	}
	a.add(h, kindFsync, "give etcd its own disk, an SSD, with "+flag+", and look for other writers to this one", "%s; %s", says, is)
}

// busy is the share of the time that was spent.
func (l Latency) busy() float64 {
	if l.Window <= 0 {
		return 0
	}
	return min(l.Spent.Seconds()/l.Window.Seconds(), 1)
}

// waiting reports whether the disk is so slow that little else happens.
func (l Latency) waiting() bool {
	return l.Count > 0 && (l.busy() >= fsyncBusy || l.Slow >= fsyncMany && l.busy() >= fsyncShare)
}

// slow reports whether the disk is too slow for a control plane.
func (l Latency) slow() bool { return l.waiting() || l.Count >= fsyncLeast && l.P99 >= fsyncSlow }

func (a *assessment) balancer(r Report) {
	s := r.LB
	if s == nil || r.HandedOver {
		return
	}
	a.backends(s)
	for _, n := range s.Names {
		if n.Problem != "" && n.Addresses > 0 { // one without is among the backends
			a.add(Healthy, kindBackendName, "correct the records of that name; its other addresses stay in use", "the name %s: %s", n.Name, n.Problem)
			a.since(n.Since)
		}
	}
	for _, l := range s.Limits {
		value := ""
		if l.Value != "" {
			value = " (" + l.Value + ")"
		}
		a.add(Degraded, kindLimit, l.Do, "the limit %s%s is reached: %s", l.Name, value, l.Text)
		a.since(l.Since)
	}
	if s.Held > 0 {
		a.add(Degraded, kindHeld, "", "%d clients wait for a backend", s.Held)
	}
	if s.Discovery != nil && s.Discovery.Error != "" {
		a.add(Healthy, kindDiscovery, "the last list stays in force until an API server answers", "no API server returns the list of backends: %s", s.Discovery.Error)
	}
	if s.Discovery != nil && s.Discovery.Certificate != nil && s.Discovery.Certificate.Error != "" {
		c := s.Discovery.Certificate
		a.add(Degraded, kindDiscoveryCertificate, c.Advice, "the certificate of the discovery ends on %s and is not renewed: %s", c.Ends.UTC().Format(time.RFC3339), c.Error)
		a.since(c.Since)
	}
}

// backends adds a finding if a backend of the load balancer is not ready.
func (a *assessment) backends(s *lb.Status) {
	var bad []string
	ready, hoped, held := 0, 0, false
	for _, b := range s.Backends {
		switch b.State {
		case "ready", "slow_start":
			ready++
		case "held", "not_ready", "dead", "unresolved":
			why := b.Reason
			if why == "" {
				why = b.LastCheck
			}
			bad = append(bad, nameOf(b)+" is "+b.State+" ("+why+")")
			held = held || b.State == "held"
		case "unknown":
			hoped++
		}
	}
	switch {
	case ready == 0 && held:
		a.add(Degraded, kindBackends, adviceOnBackends(s.Backends, "read the log for the reason why they have fallen, and run kthwd status there"),
			"no backend is ready; those that are held down pass their checks and are used: %s", strings.Join(bad, ", "))
	case len(s.Backends) > 0 && ready == 0 && hoped == 0:
		a.add(Down, kindBackends, adviceOnBackends(s.Backends, "run kthwd status on these machines; connections go to any backend that answers"), "no backend is ready: %s", strings.Join(bad, ", "))
	case len(bad) > 0:
		a.add(Degraded, kindBackends, adviceOnBackends(s.Backends, "run kthwd status there"), "%d of %d backends are not ready: %s", len(bad), len(s.Backends), strings.Join(bad, ", "))
	}
}

// nameOf is the address of a backend, with the configured name it comes from.
func nameOf(b lb.BackendStatus) string {
	if b.Name == "" {
		return b.Address
	}
	return b.Address + " of " + b.Name
}

// adviceOnBackends adds advice about a bad certificate, with which kthwd status on the
// other machine may find nothing wrong.
func adviceOnBackends(all []lb.BackendStatus, advice string) string {
	if slices.ContainsFunc(all, func(b lb.BackendStatus) bool { return b.LastCheck == string(check.KindBadCert) }) {
		advice += "; for bad_cert reissue that certificate, or correct --backend-ca or --backend-server-name"
	}
	return advice
}

func (a *assessment) certificates(r Report, now time.Time) {
	for _, c := range r.Certificates {
		file, left, before := filepath.Base(c.File), c.NotAfter.Sub(now), len(a.findings)
		switch {
		case c.Problem != "":
			a.add(Degraded, cause.Certificate, "", "%s: %s", c.File, c.Problem)
		case c.Use == "signing": // only the key in it is used
		case c.Use == UseDiscovery: // which the load balancer renews, and reports itself
		case left <= 0 && file == pki.NameAdmin+".kubeconfig": // people have it, and nothing that runs
			a.add(Degraded, cause.Certificate, renew(c), "%s (%s) expired on %s", file, c.Subject, c.NotAfter.UTC().Format(time.DateOnly))
		case left <= 0:
			a.add(Down, cause.Certificate, renew(c), "%s (%s) expired on %s", file, c.Subject, c.NotAfter.UTC().Format(time.DateOnly))
		case left < certSoon:
			a.add(Degraded, cause.Certificate, renew(c), "%s (%s) expires in %s", file, c.Subject, Age(left))
		case left < certWord:
			a.add(Healthy, cause.Certificate, renew(c), "%s (%s) expires in %d days", file, c.Subject, int(left.Hours()/24))
		}
		if len(a.findings) > before && c.Problem == "" {
			a.since(c.soonSince(now))
		}
	}
}

// soonSince returns when a certificate crossed the threshold below which it is now.
func (c Certificate) soonSince(now time.Time) time.Time {
	for _, threshold := range []time.Duration{0, certSoon} {
		if c.NotAfter.Sub(now) <= threshold {
			return c.NotAfter.Add(-threshold)
		}
	}
	return c.NotAfter.Add(-certWord)
}

// since dates the last finding.
func (a *assessment) since(t time.Time) { a.findings[len(a.findings)-1].Since = t }
