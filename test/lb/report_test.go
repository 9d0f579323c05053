package lb

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// elapsed is the duration of an event, or a note that it exceeded the waiting time.
type elapsed struct {
	d       time.Duration
	more    bool
	stalled time.Duration // of d, in which the test did not run
}

func took(d time.Duration) elapsed { return elapsed{d: d} }

// span is the time from one moment to another.
func span(from, to time.Time) elapsed {
	return elapsed{d: to.Sub(from), stalled: machine().between(from, to)}
}

// ran returns the duration without the stalls in it.
func (e elapsed) ran() time.Duration { return e.d - e.stalled }

func (e elapsed) String() string {
	text := fmt.Sprintf("%d ms", e.d.Milliseconds())
	if e.d >= time.Second {
		text = fmt.Sprintf("%.2f s", e.d.Seconds())
	}
	if e.more {
		return "> " + text
	}
	return text
}

// figure is one line of the table.
type figure struct {
	Row    string            `json:"row"`
	What   string            `json:"what"`
	Target string            `json:"target,omitempty"`
	Values map[string]string `json:"values"` // by balancer
}

// figures collects the figures of concurrent rows.
type figures struct {
	mu  sync.Mutex
	all []*figure
}

func (f *figures) add(row, what, target, side, value string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.all, func(g *figure) bool { return g.Row == row && g.What == what })
	if i < 0 {
		f.all = append(f.all, &figure{Row: row, What: what, Target: target, Values: map[string]string{}})
		i = len(f.all) - 1
	}
	f.all[i].Values[side] = value
}

// count records a number, which for kthwd must be at most limit.
func (r *rig) count(t *testing.T, row, what string, got, limit int) {
	t.Helper()
	target := "0"
	if limit > 0 {
		target = fmt.Sprintf("≤ %d", limit)
	}
	r.figures.add(row, what, target, r.side.Name, fmt.Sprint(got))
	if r.judged() && got > limit {
		t.Errorf("row %s: %s: got %d, want ≤ %d", row, what, got, limit)
	}
}

// failures records requests, none of which may fail for kthwd.
func (r *rig) failures(t *testing.T, row, what string, of requests) {
	t.Helper()
	failed := of.failed()
	r.figures.add(row, what, "0", r.side.Name, fmt.Sprintf("%d of %d", len(failed), len(of)))
	if len(failed) > 0 {
		t.Logf("row %s: %s: %s, the first begun %v after the first of them, the last %v",
			row, what, of.text(), failed[0].at.Sub(of[0].at), failed[len(failed)-1].at.Sub(of[0].at))
	}
	if r.judged() && (len(failed) > 0 || len(of) == 0) {
		t.Errorf("row %s: %s: got %s, want 0", row, what, of.text())
	}
}

// within records a time with the target for kthwd. Target is the promise that the table
// publishes. The row fails when the time exceeds allowed, which leaves room for a busy
// machine. Stalls of the machine do not count.
func (r *rig) within(t *testing.T, row, what string, got elapsed, target, allowed time.Duration) {
	t.Helper()
	r.figures.add(row, what, "≤ "+took(target).String(), r.side.Name, got.String())
	if r.judged() && (got.more || got.ran() > allowed) {
		t.Errorf("row %s: %s: got %v, want ≤ %v (allowed %v)", row, what, got, target, allowed)
	}
}

// lastOf records when the last of some requests was started, with the target for kthwd
// relative to the fault. It fails when they include more than one in twenty of the
// requests started later than allowed: on a busy machine some are slow anyway.
func (r *rig) lastOf(t *testing.T, row, what string, all requests, slow time.Duration, fault time.Time, target, allowed time.Duration) {
	t.Helper()
	r.figures.add(row, what, "≤ "+took(target).String(), r.side.Name, took(all.slower(slow).lastBegin(fault)).String())
	late := all.since(fault.Add(allowed + machine().between(fault, fault.Add(allowed)))).unstalled()
	if r.judged() && len(late) == 0 {
		t.Errorf("row %s: %s: no request was begun later than %v", row, what, allowed)
	}
	if slower := late.slower(slow); r.judged() && len(slower)*20 > len(late) {
		t.Errorf("row %s: %s: got %d of %d begun later than %v", row, what, len(slower), len(late), allowed)
	}
}

// note records a figure without a target.
func (r *rig) note(row, what, format string, args ...any) {
	r.figures.add(row, what, "", r.side.Name, fmt.Sprintf(format, args...))
}

// report prints the table and one line of JSON, unchanged on standard output, so that
// scripts can read them.
func (s *suite) report(t *testing.T) {
	t.Helper()
	s.figures.sort()
	var names []string
	versions := map[string]string{}
	for _, side := range s.sides {
		names = append(names, side.Name)
		versions[side.Name] = side.Version()
	}
	fmt.Println()
	s.figures.table(os.Stdout, names)
	line, err := json.Marshal(struct {
		Table    string            `json:"table"`
		Versions map[string]string `json:"versions"`
		Figures  []*figure         `json:"figures"`
	}{"kthwd-lb-failures", versions, s.figures.all})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n%s\n\n", line)
}

// sort puts the figures in the order of the rows.
func (f *figures) sort() {
	slices.SortStableFunc(f.all, func(a, b *figure) int { return rowNumber(a.Row) - rowNumber(b.Row) })
}

// rowNumber of "2b" is 202.
func rowNumber(row string) int {
	n, letter := 0, ""
	if _, err := fmt.Sscanf(row, "%d%s", &n, &letter); err != nil && n == 0 {
		return 0
	}
	if letter != "" {
		return n*100 + int(letter[0]-'a') + 1
	}
	return n * 100
}

func (f *figures) table(out io.Writer, sides []string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "row\twhat\t%s\ttarget\n", strings.Join(sides, "\t"))
	last := ""
	for _, g := range f.all {
		row := g.Row
		if row == last {
			row = ""
		}
		last = g.Row
		fmt.Fprintf(w, "%s\t%s", row, g.What)
		for _, side := range sides {
			value, ok := g.Values[side]
			if !ok {
				value = "—"
			}
			fmt.Fprintf(w, "\t%s", value)
		}
		fmt.Fprintf(w, "\t%s\n", g.Target)
	}
	w.Flush()
}
