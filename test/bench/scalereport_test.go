package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"text/tabwriter"

	"kthwd/test/kthwtest"
	"kthwd/test/report"
)

// latency is a row for each of two percentiles.
type latency struct{ p50, p99 *metric }

func newLatency(key, what string, reach target) latency {
	return latency{
		&metric{key + "_p50", what + ", p50", "ms", reach},
		&metric{key + "_p99", "  p99", "ms", target{}},
	}
}

// The targets are those of the issue about cost that grows as slowly as the cluster.
var (
	scaleCreated    = &metric{"created", "pods created, 32 clients", "/s", target{}}
	scaleWrites     = &metric{"writes", "  writes to etcd meanwhile", "/s", target{}}
	scaleRunning    = &metric{"running", "  until all run", "/s", target{}}
	scalePeakRSS    = &metric{"rss_peak", "RSS, highest while they are created", "MiB", target{}}
	scaleFilledRSS  = &metric{"rss_filled", "RSS right afterwards", "MiB", target{ratioAtMost, 0.8}}
	scaleSettledRSS = &metric{"rss_settled", "RSS with heartbeats, settled", "MiB", target{ratioAtMost, 0.5}}
	scaleHeartbeats = &metric{"cpu_heartbeats", "CPU of the heartbeats, ticks of 10 ms in 60 s", "", target{ratioAtMost, 0.4}}
	scaleAlone      = &metric{"cpu_alone", "CPU without a client, ticks in 60 s", "", target{ratioAtMost, 0.4}}

	scaleBind  = newLatency("bind", "pod created → bound", target{})
	scaleGet   = newLatency("get", "GET of a pod", target{})
	scalePatch = newLatency("patch", "PATCH of a pod", target{})
	scaleLists = listLatencies("list", "")

	scaleRestart      = &metric{"restart", "restart → /readyz", "s", target{ratioAtMost, 0.45}}
	scaleRestartBound = &metric{"restart_bound", "restart → first new pod bound", "s", target{ratioAtMost, 0.5}}
	scaleBindAgain    = newLatency("restart_bind", "the ten after it, one after the other", target{})
	scaleListsAgain   = listLatencies("restart_list", ", right after the restart")
	scaleRestartDone  = &metric{"restart_done", "restart → all of these done", "s", target{}}
	scaleRestartPeak  = &metric{"rss_restart_peak", "RSS, highest of the restart", "MiB", target{}}
	scaleRestartRSS   = &metric{"rss_restart", "RSS after the restart", "MiB", target{}}

	scaleMetrics = []*metric{
		scaleCreated, scaleWrites, scaleRunning, scalePeakRSS, scaleFilledRSS, scaleSettledRSS, scaleHeartbeats, scaleAlone,
		scaleBind.p50, scaleBind.p99, scaleGet.p50, scaleGet.p99, scalePatch.p50, scalePatch.p99,
		scaleLists[0].p50, scaleLists[0].p99, scaleLists[1].p50, scaleLists[1].p99, scaleLists[2].p50, scaleLists[2].p99,
		scaleRestart, scaleRestartBound, scaleBindAgain.p50, scaleBindAgain.p99,
		scaleListsAgain[0].p50, scaleListsAgain[0].p99, scaleListsAgain[1].p50, scaleListsAgain[1].p99, scaleListsAgain[2].p50, scaleListsAgain[2].p99,
		scaleRestartDone, scaleRestartPeak, scaleRestartRSS, metricOthers,
	}

	// scaleDrawn are the figures with a diagram.
	scaleDrawn = []*metric{scaleSettledRSS, scaleFilledRSS, scaleHeartbeats, scaleAlone, scaleLists[1].p50, scaleBind.p50, scaleRestart, scaleRestartBound}
)

func listLatencies(key, when string) [3]latency {
	reach := target{ratioAtMost, 0.9}
	return [3]latency{
		newLatency(key+"_500", "list of 500 pods"+when, reach),
		newLatency(key+"_all", "list of all pods"+when, reach),
		newLatency(key+"_label", "list by a label, 2 % of the pods"+when, reach),
	}
}

// growth is one figure at each size, in the order of the sizes.
type growth struct {
	Unit     string    `json:"unit"`
	Separate []float64 `json:"separate"`
	Kthwd    []float64 `json:"kthwd"`
	Ratio    []float64 `json:"ratio"`
	Slope    *slopes   `json:"slope,omitempty"` // with two sizes or more
}

// slopes are those against the number of pods, for 1000 of them.
type slopes struct {
	Separate float64  `json:"separate"`
	Kthwd    float64  `json:"kthwd"`
	Ratio    *float64 `json:"ratio,omitempty"` // where the figure of the separate programs grows
}

// growthOf is nil where a side or a size is missing.
func (s *scale) growthOf(m *metric) *growth {
	g := &growth{Unit: m.unit}
	var pods []float64
	for _, size := range s.sizes {
		r := s.results[size]
		if r == nil || r.samples[m] == nil {
			return nil
		}
		sum := r.summary(m)
		if sum.Separate == nil || sum.Kthwd == nil {
			return nil
		}
		pods = append(pods, float64(size.pods)/1000)
		g.Separate, g.Kthwd = append(g.Separate, sum.Separate.Median), append(g.Kthwd, sum.Kthwd.Median)
		ratio := 0.0
		if sum.Ratio != nil {
			ratio = *sum.Ratio
		}
		g.Ratio = append(g.Ratio, ratio)
	}
	if len(s.sizes) > 1 {
		g.Slope = &slopes{Separate: report.Round3(report.Slope(pods, g.Separate)), Kthwd: report.Round3(report.Slope(pods, g.Kthwd))}
		if g.Slope.Separate > 0 {
			ratio := report.Round3(g.Slope.Kthwd / g.Slope.Separate)
			g.Slope.Ratio = &ratio
		}
	}
	return g
}

// report prints a table for each size, the slopes, and the JSON line.
func (s *scale) report(t *testing.T) {
	t.Helper()
	for _, size := range s.sizes {
		r := s.results[size]
		fmt.Printf("\n%d nodes, %d pods; restarts by the units: separate %d, kthwd %d\n\n", size.nodes, size.pods, r.restarts[separate], r.restarts[kthwd])
		r.table(os.Stdout, scaleMetrics)
	}
	if len(s.sizes) > 1 {
		fmt.Print("\nslopes, for 1000 pods more\n\n")
		s.slopeTable(os.Stdout)
	}
	line := s.line(t, s.versions(t))
	fmt.Printf("\n%s\n\n", line)
	if machine := os.Getenv("KTHWD_BENCH_PUBLISH"); machine != "" {
		s.publish(t, kthwtest.Root(), machine, line)
	}
}

func (s *scale) slopeTable(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tseparate\tkthwd\tratio")
	for _, m := range scaleMetrics {
		if g := s.growthOf(m); g != nil && g.Slope != nil {
			fmt.Fprintf(w, "%s\t%.2f %s\t%.2f %s\t%s\n", m.what, g.Slope.Separate, m.unit, g.Slope.Kthwd, m.unit, report.RatioText(g.Slope.Ratio, nil, m.unit))
		}
	}
	w.Flush()
}

func (s *scale) line(t *testing.T, versions map[string]string) []byte {
	t.Helper()
	all := map[string]*growth{}
	for _, m := range scaleMetrics {
		if g := s.growthOf(m); g != nil {
			all[m.key] = g
		}
	}
	var sizes []string
	for _, size := range s.sizes {
		sizes = append(sizes, size.String())
	}
	line, err := json.Marshal(struct {
		Bench    string             `json:"bench"`
		Versions map[string]string  `json:"versions"`
		Cores    int                `json:"cores"`
		Sizes    []string           `json:"sizes"`
		Idle     string             `json:"idle"`
		Args     []string           `json:"kthwd_args,omitempty"`
		Metrics  map[string]*growth `json:"metrics"`
	}{"kthwd-scale", versions, runtime.NumCPU(), sizes, s.idle.String(), s.kthwdArgs, all})
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// The files of a run that is published.
const (
	scaleHistory = "test/bench/scale.jsonl"
	scaleDrawing = "docs/scale.svg"
	scalePage    = "docs/performance.md"
)

// publish appends the line to the history, draws the curves, and writes the section of the page.
func (s *scale) publish(t *testing.T, root, machine string, line []byte) {
	t.Helper()
	git := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", root}, args...)...).Output()
		if err != nil {
			t.Fatalf("git %v: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	commit, date := git("rev-parse", "--short=8", "HEAD"), git("show", "-s", "--format=%cs", "HEAD")
	entry, err := json.Marshal(map[string]any{"commit": commit, "date": date, "machine": machine, "run": json.RawMessage(line)})
	if err != nil {
		t.Fatal(err)
	}
	history, err := os.OpenFile(filepath.Join(root, scaleHistory), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer history.Close()
	if _, err := fmt.Fprintf(history, "%s\n", entry); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, scaleDrawing), []byte(report.SVG(s.panels())), 0o644); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(root, scalePage)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(page, []byte(putSection(string(text), s.section(commit, date, machine))), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s *scale) panels() (all []report.Panel) {
	for _, m := range scaleDrawn {
		g := s.growthOf(m)
		if g == nil {
			continue
		}
		p := report.Panel{Title: strings.TrimSpace(m.what), Curves: []report.Curve{{Name: "four programs", Values: g.Separate}, {Name: "kthwd", Values: g.Kthwd}}}
		if m.unit != "" {
			p.Title += ", " + m.unit
		}
		for _, size := range s.sizes {
			p.X, p.Labels = append(p.X, float64(size.pods)), append(p.Labels, size.String())
		}
		all = append(all, p)
	}
	return all
}

// section is what the page says of the run.
func (s *scale) section(commit, date, machine string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Commit %s of %s; %s. Nodes/pods below the curves, and one ratio to the four programs for each size.\n\n![curves](%s)\n\n",
		commit, date, machine, filepath.Base(scaleDrawing))
	b.WriteString("| what |")
	for _, size := range s.sizes {
		fmt.Fprintf(&b, " %v |", size)
	}
	b.WriteString(" slopes |\n|---|" + strings.Repeat("---|", len(s.sizes)+1) + "\n")
	for _, m := range scaleMetrics {
		g := s.growthOf(m)
		if g == nil || m == metricOthers {
			continue
		}
		what := strings.TrimSpace(m.what)
		if what == "p99" {
			what = "… p99"
		}
		fmt.Fprintf(&b, "| %s |", what)
		for _, ratio := range g.Ratio {
			fmt.Fprintf(&b, " %.2f |", ratio)
		}
		slope := "—"
		if g.Slope != nil && g.Slope.Ratio != nil && *g.Slope.Ratio > 0 { // a figure that falls has none
			slope = fmt.Sprintf("%.2f", *g.Slope.Ratio)
		}
		fmt.Fprintf(&b, " %s |\n", slope)
	}
	return b.String()
}

// putSection replaces the section of an earlier run, or appends the first one.
func putSection(page, section string) string {
	const begin, end = "<!-- bench-scale: begin. Written by \"make bench-scale PUBLISH=…\". -->", "<!-- bench-scale: end -->"
	head, rest, found := strings.Cut(page, begin)
	if !found {
		return page + "\n## Larger clusters\n\n" + begin + "\n\n" + section + "\n" + end + "\n"
	}
	_, tail, _ := strings.Cut(rest, end)
	return head + begin + "\n\n" + section + "\n" + end + tail
}
