package status

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"kthwd/appliance/supervise"
	"kthwd/appliance/text"
	"kthwd/lb"
)

// The page is one document that loads no other file. Without JavaScript it reloads
// itself every few seconds; with JavaScript it replaces its HTML without a flicker.

//go:embed page.html
var pageText string

//go:embed page.css
var pageStyle string

//go:embed page.js
var pageScript string

// pageTemplate is parsed when the page is first asked for: no other call of kthwd needs it.
var pageTemplate = sync.OnceValue(func() *template.Template { return template.Must(template.New("page").Parse(pageText)) })

// pagePolicy allows the page's own style and script, by their hashes, and nothing
// else: the name of a backend or a certificate cannot become code.
var pagePolicy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	hashOf(pageStyle), hashOf(pageScript))

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	now := time.Now()
	var b strings.Builder
	r := s.report(now)
	p := newPage(r.Spelled(s.AsTyped), now, s.paths)
	if s.Others != nil {
		p.controllers(s.cluster(r), now)
	}
	p.History = sparklines(s.history.Lines())
	if err := pageTemplate().Execute(&b, p); err != nil {
		s.log.Error("status page", "err", err)
		http.Error(w, "the page cannot be rendered", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	fmt.Fprint(w, b.String())
}

// page is the data of the template: text and numbers, no HTML.
type page struct {
	Style  template.CSS
	Script template.JS

	Title, What, Up, At string
	Health              Health
	Tone, Since         string
	Ready               bool
	Reason              string
	Facts               []fact
	Findings            []pageFinding
	Pictures            []picture
	Components          grid
	Timeline            []bar
	Total               string
	Quorum              *Quorum
	Member              *Member
	Size, InUse, Quota  string
	Fsync               string
	Members             grid
	Leases              grid
	Certificates        grid
	Events              grid
	LB                  *lb.Status
	Backends, Listeners grid
	Controllers         grid
	History             []sparkline
	Paths               []string
}

// fact is one line of what matters most, above everything else.
type fact struct{ Name, Tone, Word, Text string }

type pageFinding struct {
	Tone, Word, Text, Since string
	Do                      []remedy
}

// tones maps states to their appearance. The page also prints the state, because many
// readers cannot tell it from colour alone.
var tones = map[string]string{
	"ready": "good", "standby": "calm", "slow_start": "calm", "healthy": "good", "waiting": "warn", "starting": "warn", "stopping": "warn",
	"unknown": "warn", "held": "warn", "not_ready": "warn", "draining": "warn", "degraded": "warn", "failed": "bad", "dead": "bad", "unresolved": "bad", "down": "bad", "stopped": "plain",
}

func newPage(r Report, now time.Time, paths []string) page {
	p := page{
		Style: template.CSS(pageStyle), Script: template.JS(pageScript),
		What: r.what(), Up: Age(now.Sub(r.Started)), At: now.UTC().Format("2006-01-02 15:04:05 UTC"),
		Health: r.Health, Tone: toneOf(r.Health), Since: ageOf(r.HealthSince, now), Ready: r.Ready, Reason: r.Reason,
		Quorum: r.Quorum, Member: r.Member, LB: r.LB, Paths: paths,
	}
	p.Title = "kthwd"
	if r.Name != "" {
		p.Title += " on " + r.Name
	}
	p.What = "kthwd " + r.Version + ", " + p.What
	for _, f := range r.Findings {
		p.Findings = append(p.Findings, findingOf(f, now))
	}
	p.Facts = facts(r, now)
	p.components(r, now)
	p.Timeline, p.Total = timeline(r.Components)
	p.etcd(r)
	p.rest(r, now)
	p.balancer(r, now)
	return p
}

// ageOf is how long ago t was; empty for the zero time.
func ageOf(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return Age(now.Sub(t))
}

func findingOf(f Finding, now time.Time) pageFinding {
	row := pageFinding{Tone: toneOf(f.Health), Word: string(f.Health), Text: f.Text, Since: ageOf(f.Since, now), Do: remediesOf(f.Do)}
	if f.Health == Healthy {
		row.Tone, row.Word = "calm", "note"
	}
	return row
}

func (p *page) components(r Report, now time.Time) {
	conditions := r.conditions(now)
	p.Pictures = pictures(r, conditions, now)
	p.Components = newGrid("components", "Components", "Component", "State", "Since", "#Restarts", "Reason", "Last error")
	for _, c := range r.Components {
		can := conditions[c.Name]
		p.Components.add(plain(c.Name), pageCell{Text: string(c.State), Tone: can.Tone, But: can.But}, plain(Age(now.Sub(c.Since))),
			plain(fmt.Sprint(c.Restarts)), why(c.Reason), why(c.LastError))
	}
}

func (p *page) etcd(r Report) {
	p.Members = newGrid("members", "Members", "Member", "Role", "Connected", "Peer URL", "ID")
	if r.Member == nil {
		return
	}
	p.Size, p.InUse, p.Quota = text.Bytes(r.Member.Size), text.Bytes(r.Member.InUse), text.Bytes(r.Member.Quota)
	p.Fsync = r.Member.Fsync.P99.Round(100 * time.Microsecond).String()
	for _, m := range r.Member.Members {
		connected := pageCell{Text: "connected", Tone: "good"}
		switch {
		case !m.Active:
			connected = pageCell{Text: "not connected", Tone: "bad"}
		case !m.Unheard.IsZero():
			connected = pageCell{Text: "not from here", Tone: "warn"}
		}
		p.Members.add(plain(m.Name), plain(m.role()), connected, plain(strings.Join(m.URLs, ", ")), plain(m.ID))
	}
}

func (p *page) rest(r Report, now time.Time) {
	p.Leases = newGrid("leases", "Who may act", "Lease", "Holder", "Since", "Here", "#Terms here")
	for _, l := range r.Leases {
		p.Leases.add(plain(l.Name), plain(l.Holder), plain(ageOf(l.Since, now)), plain(yes(l.Leading)), plain(fmt.Sprint(l.Terms)))
	}
	p.Certificates = newGrid("certificates", "Certificates and kubeconfigs", "File", "Left", "Until", "Subject", "Use")
	for _, c := range r.Certificates {
		left, until := pageCell{Text: c.left(now), Tone: c.tone(now)}, c.NotAfter.UTC().Format(time.DateOnly)
		if c.Problem != "" {
			left.Text, until = c.Problem, ""
		}
		p.Certificates.add(plain(filepath.Base(c.File)), left, pageCell{Text: until, Class: "whole"}, plain(c.Subject), plain(c.Use))
	}
	p.Events = newGrid("events", "Newest first", "What", "Ago", "From", "To", "Reason")
	for _, e := range r.Events[:min(len(r.Events), 20)] {
		p.Events.add(plain(e.Object), plain(Age(now.Sub(e.Time))), plain(e.From), plain(e.To), why(e.Reason))
	}
}

// tone is that of the time that a certificate has left.
func (c Certificate) tone(now time.Time) string {
	switch left := c.NotAfter.Sub(now); {
	case c.Problem != "":
		return "bad"
	case c.Use == "signing": // only the key in it is used
		return "plain"
	case left < certSoon:
		return "bad"
	case left < certWord:
		return "warn"
	}
	return "good"
}

func (p *page) balancer(r Report, now time.Time) {
	p.Backends = newGrid("backends", "Backends", "Backend", "State", "Since", "Reason", "#Open", "#Rate", "#In", "#Out", "#Total", "#Errors", "Last check")
	p.Listeners = newGrid("listeners", "Listeners", "Listener", "#Open", "#Accepted", "#Rejected")
	if r.LB == nil {
		return
	}
	for _, b := range r.LB.Backends {
		rate, in, out := "", "", ""
		if v, known := r.Rates[b.Address]; known {
			rate = fmt.Sprintf("%.1f/s", v.Connections)
			in, out = text.Bytes(int64(v.Received))+"/s", text.Bytes(int64(v.Sent))+"/s"
		}
		address := b.Address
		if b.Name != "" {
			address += " (" + b.Name + ")"
		}
		p.Backends.add(plain(address), pageCell{Text: b.State, Tone: tones[b.State]}, plain(ageOf(b.Since, now)), why(b.Reason), plain(fmt.Sprint(b.Active)),
			plain(rate), plain(in), plain(out), plain(fmt.Sprint(b.Total)), plain(fmt.Sprint(b.Errors)), plain(b.LastCheck))
	}
	for _, l := range r.LB.Listen {
		p.Listeners.add(plain(listenerName(l)), plain(fmt.Sprint(l.Active)), plain(fmt.Sprint(l.Accepted)), plain(fmt.Sprint(l.Rejected)))
	}
}

// bar is one component in the timeline of the start. From and Of are per mille of the
// timeline's width.
type bar struct {
	Name     string
	Took, At string
	From, Of int
}

func timeline(all []supervise.Status) (bars []bar, total string) {
	all = slices.DeleteFunc(slices.Clone(all), func(s supervise.Status) bool { return s.ReadyAt == 0 })
	slices.SortStableFunc(all, func(a, b supervise.Status) int { return int(a.ReadyAt - b.ReadyAt) })
	if len(all) == 0 {
		return nil, ""
	}
	end := max(all[len(all)-1].ReadyAt, time.Millisecond)
	for _, s := range all {
		bars = append(bars, bar{
			Name: s.Name, Took: fmt.Sprintf("%.2f s", s.Took.Seconds()), At: fmt.Sprintf("%.2f s", s.ReadyAt.Seconds()),
			From: int(1000 * (s.ReadyAt - s.Took) / end), Of: max(int(1000*s.Took/end), 4),
		})
	}
	return bars, fmt.Sprintf("%.2f s", end.Seconds())
}

// picture shows the components with lines to those after which they start, in columns
// or, for a narrow screen, in rows.
type picture struct {
	Class         string
	Width, Height int
	Boxes         []box
	Lines         []arrow
}

type box struct {
	X, Y, Width, Height int
	Name, State, Tone   string
}

// The coordinates of the text in the box.
func (b box) TextX() int  { return b.X + 10 }
func (b box) NameY() int  { return b.Y + 20 }
func (b box) StateY() int { return b.Y + 38 }

type arrow struct{ X1, Y1, X2, Y2 int }

func pictures(r Report, conditions map[string]condition, now time.Time) []picture {
	if len(r.Dependencies) == 0 {
		return nil
	}
	return []picture{draw(r, conditions, now, "wide", 302, 268, 66, true), draw(r, conditions, now, "narrow", 330, 318, 66, false)}
}

// draw puts each component one step after all that it depends on. A step is a column
// of the wide picture; the narrow one stacks all components.
func draw(r Report, conditions map[string]condition, now time.Time, class string, stepX, width, stepY int, wide bool) picture {
	step := map[string]int{}
	for range r.Components { // a chain is at most this long
		for _, c := range r.Components {
			for _, d := range r.Dependencies[c.Name] {
				step[c.Name] = max(step[c.Name], step[d]+1)
			}
		}
	}
	p := picture{Class: class}
	ordered := slices.Clone(r.Components)
	slices.SortStableFunc(ordered, func(a, b supervise.Status) int { return step[a.Name] - step[b.Name] })
	rows := map[int]int{}
	at := map[string]box{}
	for i, c := range ordered {
		column, row := step[c.Name], rows[step[c.Name]]
		rows[column]++
		b := box{X: 4 + column*stepX, Y: 4 + row*stepY, Width: width, Height: 48, Name: c.Name, State: boxText(c, conditions[c.Name], now), Tone: conditions[c.Name].Tone}
		if !wide {
			b.X, b.Y = 4+14*column, 4+i*(stepY-8)
			b.Width = width - 14*column
		}
		at[c.Name] = b
		p.Boxes = append(p.Boxes, b)
		p.Width, p.Height = max(p.Width, b.X+b.Width+4), max(p.Height, b.Y+b.Height+4)
	}
	for _, c := range ordered {
		for _, d := range r.Dependencies[c.Name] {
			from, to := at[d], at[c.Name]
			if step[c.Name]-step[d] != 1 && !wide {
				continue
			}
			if wide {
				p.Lines = append(p.Lines, arrow{from.X + from.Width, from.Y + 24, to.X, to.Y + 24})
			} else {
				p.Lines = append(p.Lines, arrow{from.X + 7, from.Y + 48, from.X + 7, to.Y + 24})
			}
		}
	}
	return p
}

// boxText is the second line of a component's box.
func boxText(c supervise.Status, can condition, now time.Time) string {
	if can.But != "" {
		return string(c.State) + ", but " + can.But
	}
	return string(c.State) + ", " + Age(now.Sub(c.Since))
}
