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

var pageTemplate = template.Must(template.New("page").Parse(pageText))

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
	if err := pageTemplate.Execute(&b, newPage(s.report(now), now, s.paths)); err != nil {
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
	Ready               bool
	Reason              string
	Findings            []Finding
	Pictures            []picture
	Components          []pageComponent
	Timeline            []bar
	Total               string
	Quorum              *Quorum
	Member              *Member
	Size, InUse, Quota  string
	Fsync               string
	Members             []pageMember
	Leases              []pageLease
	Certificates        []pageCertificate
	Events              []pageEvent
	LB                  *lb.Status
	Backends            []pageBackend
	Paths               []string
}

type pageComponent struct{ Name, State, Tone, Since, Reason, Error, Restarts string }

type pageMember struct{ Name, ID, URLs, Role, Connected, Tone string }

type pageLease struct{ Name, Holder, Since, Here, Terms string }

type pageCertificate struct{ File, Subject, Use, Left, Until, Tone string }

type pageEvent struct{ Ago, Object, From, To, Reason string }

type pageBackend struct {
	Address, Source, State, Tone, Since, LastCheck, Reason string
	Active                                                 int
	Total, Errors                                          uint64
	Rate, In, Out                                          string
}

// tones maps states to their appearance. The page also prints the state, because many
// readers cannot tell it from colour alone.
var tones = map[string]string{
	"ready": "good", "standby": "calm", "slow_start": "calm", "healthy": "good", "waiting": "warn", "starting": "warn", "stopping": "warn",
	"unknown": "warn", "not_ready": "warn", "draining": "warn", "degraded": "warn", "failed": "bad", "dead": "bad", "down": "bad", "stopped": "plain",
}

func newPage(r Report, now time.Time, paths []string) page {
	p := page{
		Style: template.CSS(pageStyle), Script: template.JS(pageScript),
		What: r.what(), Up: Age(now.Sub(r.Started)), At: now.UTC().Format("2006-01-02 15:04:05 UTC"),
		Health: r.Health, Ready: r.Ready, Reason: r.Reason, Findings: r.Findings,
		Quorum: r.Quorum, Member: r.Member, LB: r.LB, Paths: paths,
	}
	p.Title = "kthwd"
	if r.Name != "" {
		p.Title += " on " + r.Name
	}
	p.What = "kthwd " + r.Version + ", " + p.What
	for _, c := range r.Components {
		p.Components = append(p.Components, pageComponent{
			Name: c.Name, State: string(c.State), Tone: tones[string(c.State)], Since: Age(now.Sub(c.Since)),
			Reason: c.Reason, Error: c.LastError, Restarts: fmt.Sprint(c.Restarts),
		})
	}
	p.Pictures = pictures(r, now)
	p.Timeline, p.Total = timeline(r.Components)
	p.etcd(r)
	p.rest(r, now)
	return p
}

func (p *page) etcd(r Report) {
	if r.Member == nil {
		return
	}
	p.Size, p.InUse, p.Quota = text.Bytes(r.Member.Size), text.Bytes(r.Member.InUse), text.Bytes(r.Member.Quota)
	p.Fsync = r.Member.Fsync.P99.Round(100 * time.Microsecond).String()
	for _, m := range r.Member.Members {
		row := pageMember{Name: m.Name, ID: m.ID, URLs: strings.Join(m.URLs, ", "), Role: m.role(), Connected: "connected", Tone: "good"}
		if !m.Active {
			row.Connected, row.Tone = "not connected", "bad"
		}
		p.Members = append(p.Members, row)
	}
}

func (p *page) rest(r Report, now time.Time) {
	for _, l := range r.Leases {
		row := pageLease{Name: l.Name, Holder: l.Holder, Here: yes(l.Leading), Terms: fmt.Sprint(l.Terms)}
		if !l.Since.IsZero() {
			row.Since = Age(now.Sub(l.Since))
		}
		p.Leases = append(p.Leases, row)
	}
	for _, c := range r.Certificates {
		row := pageCertificate{File: filepath.Base(c.File), Subject: c.Subject, Use: c.Use, Left: c.left(now), Until: c.NotAfter.UTC().Format(time.DateOnly), Tone: "good"}
		switch left := c.NotAfter.Sub(now); {
		case c.Problem != "":
			row.Left, row.Until, row.Tone = c.Problem, "", "bad"
		case c.Use == "signing": // only the key in it is used
			row.Tone = "plain"
		case left < certSoon:
			row.Tone = "bad"
		case left < certWord:
			row.Tone = "warn"
		}
		p.Certificates = append(p.Certificates, row)
	}
	for _, e := range r.Events[:min(len(r.Events), 20)] {
		p.Events = append(p.Events, pageEvent{Age(now.Sub(e.Time)), e.Object, e.From, e.To, e.Reason})
	}
	if r.LB == nil {
		return
	}
	for _, b := range r.LB.Backends {
		row := pageBackend{
			Address: b.Address, Source: b.Source, State: b.State, Tone: tones[b.State], LastCheck: b.LastCheck, Reason: b.Reason,
			Active: b.Active, Total: b.Total, Errors: b.Errors,
		}
		if !b.Since.IsZero() {
			row.Since = Age(now.Sub(b.Since))
		}
		if rate, known := r.Rates[b.Address]; known {
			row.Rate = fmt.Sprintf("%.1f/s", rate.Connections)
			row.In, row.Out = text.Bytes(int64(rate.Received))+"/s", text.Bytes(int64(rate.Sent))+"/s"
		}
		p.Backends = append(p.Backends, row)
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

func pictures(r Report, now time.Time) []picture {
	if len(r.Dependencies) == 0 {
		return nil
	}
	return []picture{draw(r, now, "wide", 284, 250, 66, true), draw(r, now, "narrow", 330, 318, 66, false)}
}

// draw puts each component one step after all that it depends on. A step is a column
// of the wide picture; the narrow one stacks all components.
func draw(r Report, now time.Time, class string, stepX, width, stepY int, wide bool) picture {
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
		b := box{X: 4 + column*stepX, Y: 4 + row*stepY, Width: width, Height: 48, Name: c.Name, State: string(c.State) + ", " + Age(now.Sub(c.Since)), Tone: tones[string(c.State)]}
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
