package lb

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestTable: rows are printed in order, independent of the order in which they ended.
func TestTable(t *testing.T) {
	var f figures
	f.add("10", "freed after", "≤ 60 s", "kthwd", "40 s")
	f.add("2b", "idle", "≤ 5 s", "nginx", "> 20 s")
	f.add("2a", "failed", "0", "kthwd", "0 of 9")
	f.add("2b", "idle", "≤ 5 s", "kthwd", "2 s")
	f.add("2b", "talking", "", "kthwd", "3 s")
	f.sort()
	var out strings.Builder
	f.table(&out, []string{"kthwd", "nginx"})
	want := strings.Join([]string{
		"row  what         kthwd   nginx   target",
		"2a   failed       0 of 9  —       0",
		"2b   idle         2 s     > 20 s  ≤ 5 s",
		"     talking      3 s     —       ",
		"10   freed after  40 s    —       ≤ 60 s",
		"",
	}, "\n")
	if got := out.String(); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
}

func TestRequests(t *testing.T) {
	begin := time.Now()
	l := &load{done: []sent{
		{at: begin.Add(3 * time.Second), took: time.Millisecond, backend: "b1"},
		{at: begin, took: 10 * time.Second, err: errors.New("late")},
		{at: begin.Add(time.Second), took: 2 * time.Second, backend: "b1"},
		{at: begin.Add(2 * time.Second), took: time.Second, backend: "b0"},
	}}
	all := l.between(begin, time.Time{})
	if got := all.text(); got != "1 of 4 (late)" {
		t.Errorf("failed: got %s", got)
	}
	if got := all.worst(); got != 2*time.Second {
		t.Errorf("worst of those that were answered: got %v", got)
	}
	if got := all.slower(1500 * time.Millisecond).lastBegin(begin); got != time.Second {
		t.Errorf("last that failed or was slow: got %v", got)
	}
	if got := all.busiest(); got != 1 {
		t.Errorf("busiest: got b%d, want b1", got)
	}
	if got := len(l.between(begin.Add(time.Second), begin.Add(3*time.Second))); got != 2 {
		t.Errorf("between 1 s and 3 s: got %d, want 2", got)
	}
}

func TestSumSeries(t *testing.T) {
	const text = `# TYPE x_total counter
x_total{backend="a",to="dead"} 2
x_total{backend="b",to="dead"} 1
x_total{backend="a",to="ready"} 4
`
	for _, test := range []struct {
		parts []string
		want  float64
		known bool
	}{
		{nil, 7, true},
		{[]string{`to="dead"`}, 3, true},
		{[]string{`backend="a"`, `to="dead"`}, 2, true},
		{[]string{`backend="c"`}, 0, false},
	} {
		if got, known := sumSeries(text, "x_total", test.parts); got != test.want || known != test.known {
			t.Errorf("%v: got %v %v, want %v %v", test.parts, got, known, test.want, test.known)
		}
	}
}
