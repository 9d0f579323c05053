package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/text"
)

// Controller is the state of one controller of the cluster, as this one knows it. It
// holds no secret.
type Controller struct {
	Name       string    `json:"name"`
	Here       bool      `json:"here,omitempty"` // the controller that was asked
	Version    string    `json:"version,omitempty"`
	Kubernetes string    `json:"kubernetes,omitempty"`
	Etcd       string    `json:"etcd,omitempty"`
	Health     Health    `json:"health,omitempty"` // empty if it has never answered
	Since      time.Time `json:"since,omitzero"`   // when Health became what it is, by its own clock
	Ready      bool      `json:"ready"`
	Reason     string    `json:"reason,omitempty"` // why it is not ready
	Leader     string    `json:"leader,omitempty"` // of etcd, in its view
	Member     string    `json:"member,omitempty"` // ID of its etcd member
	Leads      bool      `json:"leads,omitempty"`  // it leads etcd

	Defragmenting bool      `json:"defragmenting,omitempty"` // its etcd member rewrites its database
	Peers         []Peer    `json:"peers,omitempty"`         // the members in its view
	Upgrade       *Upgrade  `json:"upgrade,omitempty"`       // nil of an older kthwd
	Started       time.Time `json:"started,omitzero"`
	Findings      []Finding `json:"findings,omitempty"` // worst first
	Answered      time.Time `json:"answered,omitzero"`  // when it gave this answer; zero for never
	Error         string    `json:"error,omitempty"`    // why it does not answer now; the rest is from its last answer
	ErrorSince    time.Time `json:"errorSince,omitzero"`
}

// Peer is a member of etcd in the view of one controller.
type Peer struct {
	ID      string `json:"id"`
	Active  bool   `json:"active"`            // it takes part in the quorum
	Unheard bool   `json:"unheard,omitempty"` // it does, without a connection to that controller
}

// Cluster is the state of all controllers of the cluster.
type Cluster struct {
	Health      Health       `json:"health"` // of the worst; one that does not answer is down
	Controllers []Controller `json:"controllers"`
}

// The limits of what a controller passes on and believes.
const (
	maxPassed = 20   // findings
	maxString = 1000 // bytes of one string
)

// ControllerOf returns the part of an assessed report that other controllers show.
func ControllerOf(r Report) Controller {
	c := Controller{
		Name: r.Name, Version: r.Version, Kubernetes: r.Kubernetes, Etcd: r.Etcd, Health: r.Health, Since: r.HealthSince,
		Ready: r.Ready, Reason: r.Reason, Upgrade: r.Upgrade, Started: r.Started, Findings: r.Findings[:min(len(r.Findings), maxPassed)],
	}
	if r.Quorum != nil {
		c.Leader = r.Quorum.Leader
	}
	if r.Member != nil {
		c.Member, c.Leads, c.Defragmenting = r.Member.ID, r.Member.Leader, !r.Member.Defragmenting.IsZero()
		for _, m := range r.Member.Members[:min(len(r.Member.Members), maxPassed)] {
			c.Peers = append(c.Peers, Peer{ID: m.ID, Active: m.Active, Unheard: !m.Unheard.IsZero()})
		}
	}
	return c
}

// From returns what is believed of an answer of the controller with that name: printable
// text of limited length, and nothing that only this controller knows.
func (c Controller) From(name string) Controller {
	c.Name, c.Here, c.Answered, c.Error, c.ErrorSince = name, false, time.Time{}, "", time.Time{}
	for _, s := range []*string{&c.Name, &c.Version, &c.Kubernetes, &c.Etcd, &c.Reason, &c.Leader, &c.Member} {
		*s = clip(*s)
	}
	if _, known := rank[c.Health]; !known {
		c.Health = Down
	}
	if u := c.Upgrade; u != nil {
		c.Upgrade = &Upgrade{Emulated: clip(u.Emulated), Next: clip(u.Next), Kthwd: clip(u.Kthwd), Kube: clip(u.Kube), Etcd: clip(u.Etcd)}
	}
	peers := c.Peers
	c.Peers = nil
	for _, p := range peers[:min(len(peers), maxPassed)] {
		c.Peers = append(c.Peers, Peer{ID: clip(p.ID), Active: p.Active, Unheard: p.Unheard})
	}
	findings := c.Findings
	c.Findings = nil
	for _, f := range findings[:min(len(findings), maxPassed)] {
		if _, known := rank[f.Health]; known {
			c.Findings = append(c.Findings, Finding{Health: f.Health, Kind: clip(f.Kind), Text: clip(f.Text), Do: clip(f.Do), Since: f.Since})
		}
	}
	return c
}

func clip(s string) string {
	s = text.Line(s)
	return strings.ToValidUTF8(s[:min(len(s), maxString)], "")
}

// Own returns the state of this process, for other controllers.
func (s *Server) Own() Controller { return ControllerOf(s.report(time.Now())) }

// cluster returns the state of all controllers, this one first.
func (s *Server) cluster(own Report) Cluster {
	c := Cluster{Controllers: append([]Controller{ControllerOf(own)}, s.Others()...)}
	c.Controllers[0].Here, c.Controllers[0].Answered = true, time.Now()
	c.Health = worst(c.Controllers)
	return c
}

func worst(all []Controller) Health {
	h := Healthy
	for _, c := range all {
		if rank[c.health()] > rank[h] {
			h = c.health()
		}
	}
	return h
}

// health is that of the controller now: one that does not answer is down.
func (c Controller) health() Health {
	if c.Error != "" || c.Health == "" {
		return Down
	}
	return c.Health
}

func (s *Server) clusterJSON(w http.ResponseWriter, _ *http.Request) {
	if s.Others == nil {
		Refuse(w, http.StatusNotFound, errors.New("no controller runs in this process: it knows no cluster"))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(s.cluster(s.report(time.Now()))) // it fails only when the client has gone
}

// word is the health of a controller in one word, or that it does not answer.
func (c Controller) word() (word string, tone string) {
	if c.Error != "" || c.Health == "" {
		return "no answer", "bad"
	}
	return string(c.Health), toneOf(c.Health)
}

// verdict is whether a controller is ready, and why not.
func (c Controller) verdict() string {
	switch {
	case c.Error != "":
		return "does not answer: " + c.Error
	case c.Health == "":
		return "not asked yet"
	case c.Ready:
		return "ready"
	}
	return "not ready: " + c.Reason
}

// began is when the controller became what word says.
func (c Controller) began() time.Time {
	if c.Error != "" {
		return c.ErrorSince
	}
	return c.Since
}

// first is the worst finding of a controller in one line, with the number of the others.
func (c Controller) first() string {
	if c.Error != "" || len(c.Findings) == 0 {
		return ""
	}
	line := c.Findings[0].Text
	if more := len(c.Findings) - 1; more > 0 {
		line += fmt.Sprintf(" (and %d more)", more)
	}
	return line
}

// Spelled returns the cluster with the remedies of the controller that was asked spelled by f;
// those of the others are typed on their machines. A nil f changes nothing.
func (c Cluster) Spelled(f func(string) string) Cluster {
	c.Controllers = slices.Clone(c.Controllers)
	for i, o := range c.Controllers {
		if o.Here {
			c.Controllers[i].Findings = spelled(o.Findings, f)
		}
	}
	return c
}

// WriteCluster writes the controllers of a cluster for people, with ages as of now.
func WriteCluster(w io.Writer, c Cluster, now time.Time, colour bool) error {
	p := painter(colour)
	paint := map[string]func(string) string{
		"good": func(s string) string { return p(green, s) }, "warn": func(s string) string { return p(yellow, s) }, "bad": func(s string) string { return p(red, s) },
	}
	var b strings.Builder
	t := header("CONTROLLER", "VERSION", "HEALTH", "SINCE", "LEADER", "VERDICT", "FINDING")
	healthy := 0
	for _, o := range c.Controllers {
		word, tone := o.word()
		if o.health() == Healthy {
			healthy++
		}
		name := o.Name
		if o.Here {
			name += " (here)"
		}
		leader := o.Leader
		if o.Error != "" {
			leader = ""
		}
		t = t.add(name, o.Version, word, ageOf(o.began(), now), leader, o.verdict(), o.first())
		t[len(t)-1][2].shown = paint[tone](word)
	}
	t.write(&b)
	for _, o := range c.Controllers {
		writeRemedies(&b, o)
	}
	fmt.Fprintf(&b, "\n%d of %d controllers are healthy\n", healthy, len(c.Controllers))
	_, err := io.WriteString(w, b.String())
	return err
}

// writeRemedies writes what to do about a controller's findings.
func writeRemedies(b *strings.Builder, c Controller) {
	if c.Error != "" {
		return
	}
	for _, f := range c.Findings {
		if f.Do != "" {
			fmt.Fprintf(b, "\n%s: %s\n  %s\n", text.Line(c.Name), text.Line(f.Text), text.Line(f.Do))
		}
	}
}

// controllers adds the controllers of the cluster to the page, where there are several.
func (p *page) controllers(c Cluster, now time.Time) {
	p.Controllers = newGrid("controllers", "Controllers of the cluster", "Controller", "Health", "Since", "etcd's leader", "Version", "Answered", "Verdict", "Finding")
	if len(c.Controllers) < 2 {
		return
	}
	healthy := 0
	for _, o := range c.Controllers {
		word, tone := o.word()
		if o.health() == Healthy {
			healthy++
		}
		answered := "never"
		switch {
		case o.Here:
			answered = "here"
		case !o.Answered.IsZero():
			answered = Age(now.Sub(o.Answered)) + " ago"
		}
		p.Controllers.add(plain(o.Name), pageCell{Text: word, Tone: tone}, plain(ageOf(o.began(), now)), plain(o.Leader), plain(o.Version), plain(answered), why(o.verdict()), why(o.first()))
	}
	f := fact{Name: "Controllers", Tone: toneOf(c.Health), Word: fmt.Sprintf("%d of %d healthy", healthy, len(c.Controllers))}
	var silent []string
	for _, o := range c.Controllers {
		if o.health() != Healthy {
			word, _ := o.word()
			silent = append(silent, o.Name+": "+word)
		}
	}
	f.Text = strings.Join(silent, ", ")
	p.Facts = append(p.Facts, f)
}
