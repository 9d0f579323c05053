package status

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"kthwd/appliance/supervise"
)

// A program that begins again after a long error: the error is there once, whole, and no line
// is wider than the terminal.
func TestTableFits(t *testing.T) {
	const said = `lease lost: Put "https://127.0.0.1:6443/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-controller-manager?timeout=5s": ` +
		`admission webhook "leases.example.com" denied the request: nobody may write leases`
	const shown = `lease lost: Put "https://127.0.0.1:6443/`
	r := healthyReport()
	r.Components = append([]supervise.Status{}, r.Components...)
	r.Components[0].Name = "kube-controller-manager-port" // the longest
	c := &r.Components[3]
	c.State, c.Since, c.Restarts, c.LastError, c.Reason = supervise.Starting, noon, 17, said, "begins again after: "+said
	r.Ready, r.Reason = false, c.Name+": "+c.Reason
	r.Events = []Event{{Time: noon, Object: c.Name, From: "ready", To: "starting", Reason: c.Reason}}
	for _, width := range []int{80, 100, 200, 1000} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			var out strings.Builder
			if err := WriteWide(&out, r, noon, false, width); err != nil {
				t.Fatal(err)
			}
			components, _, _ := strings.Cut(out.String(), "\n\nMEMBER")
			if strings.Count(components, "begins again") != 1 || strings.Count(components, "lease lost") != 1 {
				t.Errorf("the error is said twice:\n%s", components)
			}
			_, events, _ := strings.Cut(out.String(), "\nAGO")
			for line := range strings.Lines(components + "\n" + events) {
				long := strings.HasPrefix(line, "etcd: ") || strings.HasPrefix(line, "kthwd ") // paragraphs
				if n := utf8.RuneCountInString(strings.TrimRight(line, " \n")); n > width && !long {
					t.Errorf("%d characters, want at most %d: %s", n, width, line)
				}
			}
			want := shown
			if width >= 200 { // three lines have room for it
				want = said
			}
			if !inColumn(components, "LAST ERROR", want) {
				t.Errorf("the error lacks %q:\n%s", want, components)
			}
			if last := components[strings.LastIndex(strings.TrimSpace(components), "\n")+1:]; last != "not ready: kube-controller-manager: begins again after the error above" {
				t.Errorf("got the verdict %q", last)
			}
		})
	}
}

// inColumn reports whether a column of a table has a text, in one line or several. Words may be cut.
func inColumn(table, column, want string) bool {
	at, got := -1, ""
	for line := range strings.Lines(table) {
		line = strings.TrimRight(line, "\n")
		if at < 0 {
			at = strings.Index(line, column)
		} else if len(line) > at {
			got += line[at:]
		}
	}
	return strings.Contains(strings.ReplaceAll(got, " ", ""), strings.ReplaceAll(want, " ", ""))
}

func TestWrap(t *testing.T) {
	for _, tt := range []struct {
		text string
		n    int
		want string
	}{
		{"", 5, ""},
		{"a b c", 5, "a b c"},
		{"ab cd ef", 5, "ab cd|ef"},
		{"abcdefghijkl m", 5, "abcde|fghij|kl m"},
		{"ä ö ü", 3, "ä ö|ü"},
		{"a bb ccc dddd", 4, "a bb|ccc|dddd"},
		{"a bb ccc dddd e", 4, "a bb|ccc|ddd…"},
		{"one two three four five", 5, "one|two|thre…"},
	} {
		if got := strings.Join(wrap(tt.text, tt.n), "|"); got != tt.want {
			t.Errorf("wrap(%q, %d) = %q, want %q", tt.text, tt.n, got, tt.want)
		}
	}
}

// Two columns of sentences share the room, and a short one leaves its own to the other.
func TestFitShares(t *testing.T) {
	long := strings.Repeat("word ", 40)
	for _, tt := range []struct{ a, b string }{{long, long}, {"short", long}, {long, "short"}, {"", long}} {
		table := header("NAME", "A", "B").add("x", tt.a, tt.b).sentences(2).fit(100)
		var out strings.Builder
		table.write(&out)
		widest := 0
		for line := range strings.Lines(out.String()) {
			widest = max(widest, len(strings.TrimSpace(line)))
		}
		if widest > 100 || widest < 90 {
			t.Errorf("%q, %q: %d characters wide:\n%s", tt.a, tt.b, widest, out.String())
		}
	}
	if got := header("NAME", "A").add("x", long).sentences(1).fit(10); got.widths()[1] > leastSentence {
		t.Errorf("on a terminal with little room: %v", got.widths())
	}
	if got := header("NAME", "A").add(long, long).sentences(1).fit(100); len(got) != 2 {
		t.Errorf("beside columns that leave no room: got %d rows, want it as it was", len(got))
	}
}
