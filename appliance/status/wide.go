package status

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"kthwd/appliance/text"
)

// writeFindings writes each finding, with what to do on the line below it.
func writeFindings(b *strings.Builder, r Report, p func(colour, string) string) {
	words := map[Health]string{Healthy: p(cyan, "note"), Degraded: p(yellow, "degraded"), Down: p(red, "down")}
	for _, f := range r.Findings {
		fmt.Fprintf(b, "%s: %s\n", words[f.Health], text.Line(f.Text))
		if f.Do != "" {
			fmt.Fprintf(b, "  %s\n", text.Line(f.Do))
		}
	}
}

// WriteWide writes the output of WriteTable, then the members of etcd, the leases,
// the certificates in use and the last changes.
func WriteWide(w io.Writer, r Report, now time.Time, colour bool, width int) error {
	var b strings.Builder
	if err := WriteTable(&b, r, now, colour, width); err != nil {
		return err
	}
	for _, t := range []table{memberTable(r), leaseTable(r, now), certificateTable(r, now), eventTable(r, now)} {
		if len(t) > 1 {
			b.WriteByte('\n')
			t.fit(width).write(&b)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func header(names ...string) table {
	row := make([]cell, len(names))
	for i, n := range names {
		row[i].text = n
	}
	return table{row}
}

func (t table) add(cells ...string) table {
	row := make([]cell, len(cells))
	for i, c := range cells {
		row[i].text = text.Line(c)
	}
	return append(t, row)
}

// sentences makes the last n columns wrap.
func (t table) sentences(n int) table {
	for _, row := range t[1:] {
		for i := len(row) - n; i < len(row); i++ {
			row[i].sentence = true
		}
	}
	return t
}

func memberTable(r Report) table {
	t := header("MEMBER", "ID", "PEER URL", "ROLE", "CONNECTED", "DATABASE", "IN USE", "FSYNC P99")
	if r.Member == nil {
		return t
	}
	for _, m := range r.Member.Members {
		size, inUse, fsync := "", "", ""
		if m.Local {
			size, inUse = text.Bytes(r.Member.Size), text.Bytes(r.Member.InUse)
			fsync = r.Member.Fsync.P99.Round(10 * time.Microsecond).String()
		}
		t = t.add(m.Name, m.ID, strings.Join(m.URLs, ","), m.role(), m.connected(), size, inUse, fsync)
	}
	return t
}

// connected tells whether a member takes part, and whether this controller hears it.
func (m MemberInfo) connected() string {
	if m.Active && !m.Unheard.IsZero() {
		return "not from here"
	}
	return yes(m.Active)
}

// role returns the role of a member in one word.
func (m MemberInfo) role() string {
	switch {
	case m.Leader:
		return "leader"
	case m.Learner:
		return "learner"
	}
	return "follower"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func leaseTable(r Report, now time.Time) table {
	t := header("LEASE", "HOLDER", "SINCE", "HERE", "TERMS")
	for _, l := range r.Leases {
		since := ""
		if !l.Since.IsZero() {
			since = Age(now.Sub(l.Since))
		}
		t = t.add(l.Name, l.Holder, since, yes(l.Leading), fmt.Sprint(l.Terms))
	}
	return t
}

func certificateTable(r Report, now time.Time) table {
	t := header("CERTIFICATE", "SUBJECT", "USE", "LEFT", "PROBLEM")
	for _, c := range r.Certificates {
		t = t.add(filepath.Base(c.File), c.Subject, c.Use, c.left(now), c.Problem)
	}
	return t.sentences(1).withoutEmptyColumn(4)
}

// left returns how long the certificate remains valid, or "" if it cannot be read.
func (c Certificate) left(now time.Time) string {
	switch left := c.NotAfter.Sub(now); {
	case c.Problem != "":
		return ""
	case left <= 0:
		return "expired"
	case left < 2*24*time.Hour:
		return Age(left)
	default:
		return fmt.Sprintf("%d days", int(left.Hours()/24))
	}
}

func eventTable(r Report, now time.Time) table {
	t := header("AGO", "WHAT", "FROM", "TO", "REASON")
	for _, e := range r.Events[:min(len(r.Events), 10)] {
		t = t.add(Age(now.Sub(e.Time)), e.Object, e.From, e.To, e.Reason)
	}
	return t.sentences(1)
}

// Fingerprint changes when the report should be shown to a person again: with states
// and findings, not with times and counters.
func (r Report) Fingerprint() string {
	key := struct {
		Ready    bool
		PID      int
		States   []string
		Findings []Finding
		Quorum   *Quorum
		Events   []Event
	}{r.Ready, r.PID, nil, r.Findings, r.Quorum, r.Events}
	for _, c := range r.Components {
		key.States = append(key.States, string(c.State)+c.Reason)
	}
	if r.LB != nil {
		for _, b := range r.LB.Backends {
			key.States = append(key.States, b.Address+b.State)
		}
	}
	text, _ := json.Marshal(key) // no type in key can fail to marshal
	return string(text)
}
