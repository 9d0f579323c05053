package docs

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kthwd/test/harness"
	"kthwd/test/kthwtest"
)

const performance = "docs/performance.md"

// entry is a line of a history file: one run of a benchmark. Run is the JSON line that
// the benchmark printed, or the part of it that is published.
type entry struct {
	Commit  string
	Date    string // of the commit
	Machine string
	Note    string // an exception, and the command if it was not the default
	Run     struct {
		Versions map[string]string
		Metrics  map[string]measured
		Values   map[string]float64 // of kthwd alone
	}
}

// measured is one metric of a run. make bench has Separate and Kthwd, the others have
// Sides and To.
type measured struct {
	Separate, Kthwd side
	Sides           map[string]side
	Ratio           float64
	Pairs           []float64 // the ratios of the rounds
	To              string    // the side that Ratio compares kthwd with
}

type side struct{ Median float64 }

// TestPerformance compares the tables of docs/performance.md with the last lines of the
// history files, from which they are generated.
func TestPerformance(t *testing.T) {
	text := read(t, performance)
	want := replaceBetween(t, text, "bench", benchSection(lastEntry(t, "test/bench/history.jsonl")))
	want = replaceBetween(t, want, "bench-lb", benchLBSection(lastEntry(t, "test/benchlb/history.jsonl")))
	want = replaceBetween(t, want, "bench-try", benchTrySection(lastEntry(t, "test/try/history.jsonl")))
	want = replaceBetween(t, want, "bench-names", benchNamesSection(lastEntry(t, "test/names/history.jsonl")))
	want = replaceBetween(t, want, "bench-far", benchFarSection(t, read(t, "test/bench/far.jsonl")))
	harness.Golden(t, filepath.Join(kthwtest.Root(), performance), []byte(want))
}

// lastEntry reads all lines of a history file, checks them, and returns the last one.
func lastEntry(t *testing.T, path string) (last entry) {
	t.Helper()
	for line := range strings.Lines(read(t, path)) {
		last = entry{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatalf("%s: %v: %s", path, err, line)
		}
		if last.Commit == "" || last.Date == "" || last.Machine == "" {
			t.Fatalf("%s: a line lacks commit, date or machine: %s", path, line)
		}
		for name, m := range last.Run.Metrics {
			if err := m.check(); err != nil {
				t.Errorf("%s: %s: %s: %v", path, last.Commit, name, err)
			}
		}
	}
	return last
}

// check compares the ratio with the medians. Published figures are rounded to two or
// three digits after the ratio was computed, so the two may differ a little.
func (m measured) check() error {
	ours, theirs := m.Kthwd.Median, m.Separate.Median
	if m.Sides != nil {
		ours, theirs = m.Sides["kthwd"].Median, m.Sides[m.To].Median
	}
	if ours == 0 || theirs == 0 {
		return fmt.Errorf("a side is missing: %+v", m)
	}
	if want := ours / theirs; math.Abs(m.Ratio-want) > max(0.1*want, 0.005) {
		return fmt.Errorf("ratio: got %g, want about %.3f", m.Ratio, want)
	}
	return nil
}

// replaceBetween puts a section between the begin and end marks of that name.
func replaceBetween(t *testing.T, text, name, section string) string {
	t.Helper()
	head, rest, begins := strings.Cut(text, "<!-- "+name+": begin.")
	note, rest, _ := strings.Cut(rest, "\n")
	_, tail, ends := strings.Cut(rest, "<!-- "+name+": end -->")
	if !begins || !ends {
		t.Fatalf("%s lacks the marks of %s", performance, name)
	}
	return head + "<!-- " + name + ": begin." + note + "\n\n" + section + "\n<!-- " + name + ": end -->" + tail
}

// benchRow is a row of the table of make bench. Several keys share one row, in one unit.
type benchRow struct {
	what     string
	keys     []string
	unit     string
	separate string // a remark on that side
}

var benchRows = []benchRow{
	{"exec → `/readyz`, empty data directory", []string{"ready"}, "s", ""},
	{"exec → ServiceAccount default/default", []string{"service_account"}, "s", ""},
	{"exec → first pod bound", []string{"first_pod"}, "s", ""},
	{"restart on existing data → `/readyz`", []string{"restart"}, "s", ""},
	{"pods bound per second, 1000 on 100 fake nodes", []string{"pods"}, "", ""},
	{"idle RSS", []string{"rss"}, "MiB", ""},
	{"RSS right after the load of this table", []string{"rss_loaded"}, "MiB", ""},
	{"idle CPU, ticks in 60 s", []string{"cpu"}, "", ""},
	{"SIGTERM → exit, 50 clients watching", []string{"stop"}, "s", " (API server alone)"},
	{"ConfigMap create / get / delete, 32 clients", []string{"create", "get", "delete"}, "per s", ""},
	{"ConfigMap list of 1000, 32 clients", []string{"list"}, "per s", ""},
}

func benchSection(e entry) string {
	var b strings.Builder
	b.WriteString(e.card())
	b.WriteString("| what | separate | kthwd | ratio |\n|---|---|---|---|\n")
	for _, row := range benchRows {
		var separate, kthwd, ratios []string
		for _, key := range row.keys {
			m, ok := e.Run.Metrics[key]
			if !ok {
				continue
			}
			separate = append(separate, figure(m.Separate.Median))
			kthwd = append(kthwd, figure(m.Kthwd.Median))
			ratios = append(ratios, ratio(m.Ratio))
		}
		if ratios == nil {
			continue
		}
		fmt.Fprintf(&b, "| %s | %s%s | %s | %s |\n", row.what,
			withUnit(strings.Join(separate, " / "), row.unit), row.separate, withUnit(strings.Join(kthwd, " / "), row.unit), strings.Join(ratios, " / "))
	}
	return b.String()
}

// lbRow is a row of the table of make bench-lb.
type lbRow struct {
	what, key string
	text      func(float64) string
	named     bool // the ratio names the side it is relative to
}

var lbRows = []lbRow{
	{"requests on 64 kept-alive connections", "requests", func(v float64) string { return thousands(v) + "/s" }, false},
	{"new connection for each request, 64 clients", "connections", func(v float64) string { return thousands(v) + "/s" }, false},
	{"bulk, one stream", "bulk", func(v float64) string { return fmt.Sprintf("%.1f Gbit/s", v) }, false},
	{"memory for each idle connection", "idle_memory", func(v float64) string { return fmt.Sprintf("%.1f KiB", v) }, false},
	{"added latency at half load, p50", "p50", func(v float64) string { return fmt.Sprintf("%.0f µs", v) }, true},
	{"added latency at half load, p99", "p99", func(v float64) string { return fmt.Sprintf("%.0f µs", v) }, true},
	{"1000 small requests a second beside bulk streams of 4 Gbit/s, p99", "paced_p99", func(v float64) string { return fmt.Sprintf("%.1f ms", v/1000) }, true},
	{"the same beside two streams that move all they can, p99", "mixed_p99", func(v float64) string { return fmt.Sprintf("%.1f ms", v/1000) }, true},
	{"… and what these streams move", "mixed_bulk", func(v float64) string { return fmt.Sprintf("%.1f Gbit/s", v) }, false},
	{"5000 clients at once, p99", "burst_p99", func(v float64) string { return fmt.Sprintf("%.0f ms", v) }, true},
}

func benchLBSection(e entry) string {
	var b strings.Builder
	b.WriteString(e.card())
	b.WriteString("In brackets: the lowest and the highest ratio of a round.\n\n")
	fmt.Fprintf(&b, "| what | kthwd | nginx %s | HAProxy %s | ratio to the better |\n|---|---|---|---|---|\n", e.Run.Versions["nginx"], e.Run.Versions["haproxy"])
	for _, row := range lbRows {
		m, ok := e.Run.Metrics[row.key]
		if !ok {
			continue
		}
		text := ratio(m.Ratio)
		if row.named {
			text += " to " + m.To
		}
		if len(m.Pairs) > 0 {
			text += fmt.Sprintf(" (%.2f–%.2f)", slices.Min(m.Pairs), slices.Max(m.Pairs))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", row.what,
			row.text(m.Sides["kthwd"].Median), row.text(m.Sides["nginx"].Median), row.text(m.Sides["haproxy"].Median), text)
	}
	return b.String()
}

func benchTrySection(e entry) string {
	var b strings.Builder
	b.WriteString(e.card())
	b.WriteString("| what | `kthwd try` | envtest, kthwd's names | envtest, upstream's programs | `kthwd try` to the last |\n|---|---|---|---|---|\n")
	for _, row := range []struct{ what, key string }{{"start until the command or the test runs", "start"}, {"CPU time from start to end", "cpu"}} {
		m := e.Run.Metrics[row.key]
		fmt.Fprintf(&b, "| %s | %s s | %s s | %s s | %s |\n", row.what,
			figure(m.Sides["kthwd"].Median), figure(m.Sides["names"].Median), figure(m.Sides["upstream"].Median), m.withPairs())
	}
	v := e.Run.Values
	fmt.Fprintf(&b, "\nTen `kthwd try -- true` at once: %s s. After half a minute one has %s MiB (RSS), of which %s MiB are its own and the rest pages of the binary; at its start it had %s MiB.\n",
		figure(v["ten_at_once_s"]), figure(v["VmRSS_mib"]), figure(v["RssAnon_mib"]), figure(v["VmHWM_mib"]))
	return b.String()
}

func benchNamesSection(e entry) string {
	var b strings.Builder
	b.WriteString(e.card())
	b.WriteString("| command | time | CPU time | highest RSS | kubectl's time |\n|---|---|---|---|---|\n")
	for _, command := range []string{"kubectl version --client", "kubectl __complete get --output ", "kubectl get --help", "version", "__complete pki "} {
		m := e.Run.Metrics
		wall, cpu, rss := m[command+": time"], m[command+": cpu"], m[command+": rss"]
		fmt.Fprintf(&b, "| `kthwd %s` | %s | %s | %s: %s MiB beside %s | %s ms |\n", strings.TrimSpace(command), wall.withPairs(), ratio(cpu.Ratio),
			ratio(rss.Ratio), figure(rss.Sides["kthwd"].Median), figure(rss.Sides["kubectl"].Median), figure(wall.Sides["kubectl"].Median))
	}
	return b.String()
}

// farRows are the figures of make bench-far, with their keys and units.
var farRows = []struct{ what, key, unit string }{
	{"objects in etcd", "data", "MiB"},
	{"start with the data → `/readyz`", "restart", "s"},
	{"start → first new pod bound", "restart_bound", "s"},
	{"the ten after it, one after the other, p50", "restart_bind_p50", "ms"},
	{"list of all pods right after the start, p50", "restart_list_all_p50", "ms"},
	{"RSS, highest of the start", "rss_restart_peak", "MiB"},
	{"RSS after the start", "rss_restart", "MiB"},
	{"RSS with heartbeats, settled", "rss_settled", "MiB"},
	{"CPU of the heartbeats, ticks of 10 ms in 60 s", "cpu_heartbeats", ""},
	{"writes of 32 clients beside them", "written", "/s"},
	{"list of 500 pods, p50", "list_500_p50", "ms"},
	{"list of all pods, p50", "list_all_p50", "ms"},
	{"list by a label, 2 % of the pods, p50", "list_label_p50", "ms"},
	{"CPU without a client, ticks in 60 s", "cpu_alone", ""},
	{"SIGTERM → exit", "stop", "s"},
}

// benchFarSection has a column for each line of the file.
func benchFarSection(t *testing.T, file string) string {
	t.Helper()
	var heads, cards []string
	columns := make([][]string, len(farRows))
	for line := range strings.Lines(file) {
		var e struct {
			entry
			Run struct {
				Size    string
				Lone    bool
				Metrics map[string]struct {
					Kthwd side
					Ratio float64
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Commit == "" || e.Date == "" || e.Machine == "" || len(e.Run.Metrics) == 0 {
			t.Fatalf("test/bench/far.jsonl: %v: %s", err, line)
		}
		head := e.Run.Size
		if e.Run.Lone {
			head += " alone"
		}
		heads, cards = append(heads, head), append(cards, head+": "+strings.TrimSpace(e.card()))
		for i, row := range farRows {
			m, measured := e.Run.Metrics[row.key]
			cell := "—"
			if measured {
				cell = withUnit(figure(m.Kthwd.Median), row.unit)
				if m.Ratio > 0 {
					cell += " (" + ratio(m.Ratio) + ")"
				}
			}
			columns[i] = append(columns[i], cell)
		}
	}
	var b strings.Builder
	for _, card := range cards {
		b.WriteString("- " + card + "\n")
	}
	fmt.Fprintf(&b, "\n| what | %s |\n|---|%s\n", strings.Join(heads, " | "), strings.Repeat("---|", len(heads)))
	for i, row := range farRows {
		fmt.Fprintf(&b, "| %s | %s |\n", row.what, strings.Join(columns[i], " | "))
	}
	return b.String()
}

// withPairs is the ratio, and in brackets the lowest and the highest of a round.
func (m measured) withPairs() string {
	if len(m.Pairs) == 0 {
		return ratio(m.Ratio)
	}
	return fmt.Sprintf("%s (%.2f–%.2f)", ratio(m.Ratio), slices.Min(m.Pairs), slices.Max(m.Pairs))
}

// card names the run from which the figures come.
func (e entry) card() string {
	card := fmt.Sprintf("Commit %s of %s; %s.", e.Commit, e.Date, e.Machine)
	if e.Note != "" {
		card += " " + e.Note
	}
	return card + "\n\n"
}

// figure rounds to about three digits, as in the table that make bench prints.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func ratio(v float64) string {
	if v >= 2 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func withUnit(text, unit string) string { return strings.TrimSpace(text + " " + unit) }

// thousands separates groups of digits with a space: 125 171.
func thousands(v float64) string {
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + " " + text[i:]
	}
	return text
}
