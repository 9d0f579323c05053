// Package status reports the state of a running kthwd: as JSON between the process
// and its verbs, and as tables and a page for people.
//
// Server serves a Report on the unix socket of the data directory, where there is
// one, and on the metrics address. Client requests it. The socket also accepts log
// levels, because only the owner of the data directory can open it. A Report holds
// no secret: the metrics address answers every client.
package status

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/cause"
	"kthwd/appliance/lastrun"
	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/lb"
)

// Report is the state of a kthwd process at one moment.
type Report struct {
	Version    string             `json:"version"`              // of kthwd
	Kubernetes string             `json:"kubernetes,omitempty"` // this and Etcd are empty where no controller runs
	Etcd       string             `json:"etcd,omitempty"`
	PID        int                `json:"pid"`
	Started    time.Time          `json:"started"`
	Ready      bool               `json:"ready"`
	Reason     string             `json:"reason,omitempty"` // why it is not ready, one line
	Components []supervise.Status `json:"components"`
	Quorum     *Quorum            `json:"quorum,omitempty"` // of etcd; nil where none runs
	LB         *lb.Status         `json:"lb,omitempty"`     // nil where none runs

	Health       Health                    `json:"health,omitempty"`     // this and Findings come from Assess
	HealthSince  time.Time                 `json:"healthSince,omitzero"` // when Health became what it is
	Findings     []Finding                 `json:"findings,omitempty"`
	Observed     []Finding                 `json:"observed,omitempty"`       // what watchers of this process have found; Assess adds them to Findings
	Name         string                    `json:"name,omitempty"`           // of this controller, or machine
	Names        cause.Names               `json:"-"`                        // with which Assess tells the causes of errors
	Dependencies map[string][]string       `json:"dependencies,omitempty"`   // the components after which each component starts
	Restarts     map[string]map[string]int `json:"restartReasons,omitempty"` // restarts by component and reason
	Backup       *Backup                   `json:"backup,omitempty"`         // nil without a backup and without a schedule
	Member       *Member                   `json:"member,omitempty"`         // of etcd; nil where none has started
	Leases       []Lease                   `json:"leases,omitempty"`
	Certificates []Certificate             `json:"certificates,omitempty"` // in use
	Rates        map[string]Rate           `json:"backendRates,omitempty"` // a load balancer's, by backend
	Events       []Event                   `json:"events,omitempty"`       // the last changes, newest first
	LastRun      *lastrun.End              `json:"lastRun,omitempty"`      // how the run before this one ended; nil where none is recorded
	Upgrade      *Upgrade                  `json:"upgrade,omitempty"`      // what an upgrade needs to know of this controller
	HandedOver   bool                      `json:"handedOver,omitempty"`   // another process has taken over this load balancer's connections
}

// Backup is the last backup of the cluster.
type Backup struct {
	Every    time.Duration `json:"everyNanoseconds,omitempty"` // 0 when no schedule is set
	File     string        `json:"file,omitempty"`             // on the controller By; empty for none
	By       string        `json:"by,omitempty"`
	Verified time.Time     `json:"verified,omitzero"` // when it was restored and compared
	Revision int64         `json:"revision,omitempty"`
	Size     int64         `json:"size,omitempty"`
}

// Upgrade is what an upgrade to another minor of Kubernetes, or the way back, needs to know of a
// controller.
type Upgrade struct {
	Emulated string `json:"emulated,omitempty"` // minor of Kubernetes that its API server emulates; "" for its own
	Next     string `json:"next,omitempty"`     // the one that the next start of the same kthwd emulates
	Kthwd    string `json:"kthwd"`              // the oldest versions that may run on its data
	Kube     string `json:"kubernetes"`
	Etcd     string `json:"etcd"`

	Unwritten string `json:"unwritten,omitempty"` // why the record of these versions cannot be written
}

// Quorum is the state of etcd's quorum.
type Quorum struct {
	Members   int    `json:"members"`                   // voting members
	Needed    int    `json:"needed"`                    // voting members needed for a write
	Active    int    `json:"active"`                    // voting members that take part, as the leader sees it; without a leader those that this member reaches, itself included
	Leader    string `json:"leader,omitempty"`          // name of the leader; empty when none is known
	Seen      string `json:"seenBy,omitempty"`          // name of the controller that counted Active
	Silent    bool   `json:"silentLeader,omitempty"`    // the leader confirms no read of this member's
	Elsewhere string `json:"leaderElsewhere,omitempty"` // the leader that other controllers have while this one has none
	Maybe     bool   `json:"maybeElsewhere,omitempty"`  // so many others give no answer that they may have a quorum without this one
	Note      string `json:"note,omitempty"`            // a further remark, one line
	Warning   string `json:"warning,omitempty"`         // about a number of members that is probably a mistake
	Advice    string `json:"advice,omitempty"`          // what remains to be done when the other members do not return
}

// LookFirst returns advice to a controller without a quorum. Where the others may have one, it
// begins with that: nothing is lost then, and no member must be forced to go on alone.
func (q Quorum) LookFirst(do string) string {
	if q.Maybe {
		return "the others may have a quorum: look there first; " + do
	}
	return do
}

// WriteTable writes a Report for people, with ages as of now. Sentences in its tables go on in
// further lines, so that none is longer than width where the other columns leave room; with
// a width of 0, for programs and files, each row is a line.
func WriteTable(w io.Writer, r Report, now time.Time, colour bool, width int) error {
	p := painter(colour)
	var b strings.Builder
	fmt.Fprintf(&b, "kthwd %s (%s), process %d, up %s\n\n", text.Line(r.Version), text.Line(r.what()), r.PID, Age(now.Sub(r.Started)))
	if !r.onlyLB() || !r.healthy() {
		r.components(now, p).fit(width).write(&b)
		if r.LB != nil || r.Quorum != nil {
			b.WriteByte('\n')
		}
	}
	if r.LB != nil {
		writeLB(&b, *r.LB, now, p, width)
	}
	if r.Quorum != nil {
		fmt.Fprintf(&b, "%s\n", r.Quorum.line(p))
	}
	writeFindings(&b, r, p)
	switch {
	case r.Ready && r.Health == Down: // a load balancer without a backend
		fmt.Fprintf(&b, "ready, but %s as reported above\n", p(red, "down"))
	case r.Ready:
		fmt.Fprintf(&b, "%s\n", p(green, "ready"))
	default:
		fmt.Fprintf(&b, "%s: %s\n", p(red, "not ready"), text.Line(r.reasonBelow()))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// what names the software in the process.
func (r Report) what() string {
	if r.onlyLB() {
		return "load balancer"
	}
	return fmt.Sprintf("Kubernetes %s, etcd %s", r.Kubernetes, r.Etcd)
}

// healthy reports whether every component is healthy and has had no error.
func (r Report) healthy() bool {
	return !slices.ContainsFunc(r.Components, func(s supervise.Status) bool { return !s.Healthy() || s.LastError != "" })
}

func (r Report) components(now time.Time, p func(colour, string) string) table {
	t := table{{{text: "COMPONENT"}, {text: "STATE"}, {text: "SINCE"}, {text: "RESTARTS"}, {text: "REASON"}, {text: "LAST ERROR"}}}
	for _, c := range r.Components {
		t = append(t, []cell{
			{text: text.Line(c.Name)},
			{text: text.Line(string(c.State)), shown: p(colours[c.State], text.Line(string(c.State)))},
			{text: Age(now.Sub(c.Since))},
			{text: fmt.Sprint(c.Restarts)},
			{text: text.Line(reasonBeside(c)), sentence: true},
			{text: text.Line(c.LastError), sentence: true},
		})
	}
	return t.withoutEmptyColumn(4)
}

// reasonBeside returns the reason of a state for a row that has the last error, too: nothing if
// it only repeats that, as that of a term which begins again does.
func reasonBeside(c supervise.Status) string {
	if c.LastError != "" && strings.HasSuffix(c.Reason, ": "+c.LastError) {
		return ""
	}
	return c.Reason
}

// reasonBelow returns why the process is not ready, for a line below the table of components: it
// does not repeat an error of that.
func (r Report) reasonBelow() string {
	for _, c := range r.Components {
		if before, repeats := strings.CutSuffix(r.Reason, "after: "+c.LastError); repeats && c.LastError != "" {
			return before + "after the error above"
		}
	}
	return r.Reason
}

func (q Quorum) line(p func(colour, string) string) string {
	state := p(green, "quorum")
	if q.Leader == "" || q.Silent {
		state = p(red, "no quorum")
	}
	line := fmt.Sprintf("etcd: %s, %d of %d members active, %d needed", state, q.Active, q.Members, q.Needed)
	if q.Leader != "" {
		line += ", leader " + text.Line(q.Leader)
	}
	if q.Silent {
		line += ", which does not answer this controller"
	}
	if q.Note != "" {
		line += "; " + text.Line(q.Note)
	}
	if q.Warning != "" {
		line += "\n" + p(yellow, "warning") + ": " + text.Line(q.Warning)
	}
	return line
}

// Age formats a duration in at most two units: 45s, 3m5s, 2h10m, 4d3h.
func Age(d time.Duration) string {
	switch d = max(d, 0).Truncate(time.Second); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// colour is an SGR parameter.
type colour string

const (
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
	cyan   colour = "36"
)

var colours = map[supervise.State]colour{
	supervise.Waiting: yellow, supervise.Starting: yellow, supervise.Stopping: yellow,
	supervise.Ready: green, supervise.Standby: cyan, supervise.Failed: red,
}

func painter(on bool) func(colour, string) string {
	paint := text.Painter(on)
	return func(c colour, s string) string {
		return paint(string(c), s)
	}
}
