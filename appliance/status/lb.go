package status

import (
	"fmt"
	"strings"
	"time"

	"kthwd/appliance/text"
	"kthwd/lb"
)

// onlyLB reports whether the process is only a load balancer.
func (r Report) onlyLB() bool { return r.LB != nil && r.Kubernetes == "" }

// writeLB writes the state of a load balancer.
func writeLB(b *strings.Builder, s lb.Status, now time.Time, p func(colour, string) string, width int) {
	listenerTable(s).write(b)
	b.WriteByte('\n')
	backendTable(s, now, p).fit(width).write(b)
	b.WriteByte('\n')
	checks := "checks: " + text.Line(s.Check)
	if strings.HasPrefix(s.Check, lb.CheckHTTPS) && !s.Verified {
		checks += ", " + p(yellow, "unverified") + ": set --backend-ca"
	}
	fmt.Fprintln(b, checks)
	if s.Discovery != nil {
		fmt.Fprintln(b, discoveryLine(*s.Discovery, now, p))
	}
	if s.FailOpen {
		fmt.Fprintf(b, "%s: no backend is ready, so connections go to any backend that answers\n", p(red, "FAIL OPEN"))
	}
	if s.Held > 0 {
		fmt.Fprintf(b, "clients held until a backend answers: %s\n", p(yellow, fmt.Sprint(s.Held)))
	}
}

func discoveryLine(s lb.DiscoveryStatus, now time.Time, p func(colour, string) string) string {
	switch {
	case s.Error != "":
		return fmt.Sprintf("discovery: %s for %s, the last list remains in force: %s", p(yellow, "no answer"), Age(now.Sub(s.Since)), text.Line(s.Error))
	case s.Server == "":
		return "discovery: " + p(yellow, "no answer yet")
	}
	return "discovery: from " + text.Line(s.Server)
}

// listenerName marks the address of a listener that looks for PROXY headers, of one that a reload
// has closed, whose connections go on, and of one that nothing can reach.
func listenerName(l lb.ListenerStatus) string {
	name := l.Address
	if l.AcceptProxy {
		name += " accept-proxy"
	}
	switch {
	case l.Closed:
		return name + " (closed)"
	case l.Away != "":
		return name + " (" + l.Away + ")"
	}
	return name
}

func listenerTable(s lb.Status) table {
	t := table{{{text: "LISTENER"}, {text: "ACTIVE"}, {text: "ACCEPTED"}, {text: "REJECTED"}}}
	for _, l := range s.Listen {
		t = append(t, []cell{{text: text.Line(listenerName(l))}, {text: fmt.Sprint(l.Active)}, {text: fmt.Sprint(l.Accepted)}, {text: fmt.Sprint(l.Rejected)}})
	}
	return t
}

func backendTable(s lb.Status, now time.Time, p func(colour, string) string) table {
	t := table{{{text: "BACKEND"}, {text: "NAME"}, {text: "SOURCE"}, {text: "USE"}, {text: "STATE"}, {text: "SINCE"}, {text: "LAST CHECK"}, {text: "ACTIVE"}, {text: "TOTAL"}, {text: "CONNECT ERRORS"}, {text: "REASON"}}}
	for _, b := range s.Backends {
		source, since, reason := b.Source, "", b.Reason
		if reason == b.LastCheck {
			reason = "" // it adds nothing
		}
		if source == "static" {
			source = ""
		}
		if !b.Since.IsZero() {
			since = Age(now.Sub(b.Since))
		}
		t = append(t, []cell{
			{text: text.Line(b.Address)},
			{text: text.Line(b.Name)},
			{text: text.Line(source)},
			{text: text.Line(useOf(b))},
			{text: text.Line(b.State), shown: p(backendColours[b.State], text.Line(b.State))},
			{text: since},
			{text: text.Line(b.LastCheck)},
			{text: fmt.Sprint(b.Active)},
			{text: fmt.Sprint(b.Total)},
			{text: fmt.Sprint(b.Errors)},
			{text: text.Line(reason), sentence: true},
		})
	}
	return t.withoutEmptyColumn(6).withoutEmptyColumn(3).withoutEmptyColumn(2).withoutEmptyColumn(1)
}

// useOf says when a backend is used, if not as any other: "backup", "weight 10".
func useOf(b lb.BackendStatus) string {
	switch {
	case b.Weight == nil:
		return b.Use
	case b.Use == "":
		return fmt.Sprintf("weight %d", *b.Weight)
	}
	return fmt.Sprintf("%s, weight %d", b.Use, *b.Weight)
}

var backendColours = map[string]colour{
	"ready": green, "slow_start": cyan, "held": yellow, "unknown": yellow, "not_ready": yellow, "draining": yellow, "dead": red, "unresolved": red,
}
