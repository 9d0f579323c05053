package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadSizes(t *testing.T) {
	got, err := readSizes("500/15000,20/300")
	if err != nil || len(got) != 2 || got[0] != (size{20, 300}) || got[1] != (size{500, 15000}) {
		t.Errorf("got %v and %v; want the smaller one first", got, err)
	}
	if all, err := readSizes(scaleSizes); err != nil || len(all) != 3 {
		t.Errorf("the default: got %v and %v", all, err)
	}
	for _, bad := range []string{"", "20", "20/", "20/x", "20/300/1", "0/1", "-1/1", "20/300,", "1/200", "020/300"} {
		if all, err := readSizes(bad); err == nil || !strings.Contains(err.Error(), "KTHWD_BENCH_SCALE") {
			t.Errorf("%q: got %v and %v; want an error", bad, all, err)
		}
	}
}

// TestScaleResults holds ratios, slopes and the published section.
func TestScaleResults(t *testing.T) {
	small, large := size{100, 3000}, size{500, 15000}
	s := &scale{bench: &bench{}, sizes: []size{small, large}, results: map[size]*results{small: newResults(), large: newResults()}}
	for size, values := range map[size][2]float64{small: {800, 400}, large: {1600, 800}} {
		s.results[size].add(scaleSettledRSS, separate, 0, values[separate])
		s.results[size].add(scaleSettledRSS, kthwd, 0, values[kthwd])
	}
	s.results[small].add(scaleAlone, kthwd, 0, 1) // no other side, and no other size
	g := s.growthOf(scaleSettledRSS)
	if g == nil || g.Ratio[0] != 0.5 || g.Slope.Separate != 66.667 || *g.Slope.Ratio != 0.5 || s.growthOf(scaleAlone) != nil {
		t.Fatalf("got %+v", g)
	}
	section := s.section("abc", "2026-01-01", "two cores")
	if want := "| RSS with heartbeats, settled | 0.50 | 0.50 | 0.50 |\n"; !strings.Contains(section, want) || len(s.panels()) != 1 {
		t.Errorf("%d panels, and\n%s", len(s.panels()), section)
	}
	once := putSection("# Page\n", section)
	if twice := putSection(once, section); twice != once || !strings.HasPrefix(once, "# Page\n") {
		t.Errorf("got\n%s", twice)
	}
}

// TestPublish writes history, drawing and page into a repository, twice.
func TestPublish(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"docs", "test/bench"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, scalePage), []byte("# Performance\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "x"}} {
		if out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", root}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	one := size{20, 300}
	s := &scale{bench: &bench{}, sizes: []size{one}, results: map[size]*results{one: newResults()}}
	s.results[one].add(scaleRestart, separate, 0, 4)
	s.results[one].add(scaleRestart, kthwd, 0, 1)
	for range 2 {
		s.publish(t, root, "two cores", s.line(t, map[string]string{"go": "go1"}))
	}
	for file, want := range map[string]string{
		scaleHistory: `"restart":{"unit":"s","separate":[4],"kthwd":[1],"ratio":[0.25]}`,
		scalePage:    "| restart → /readyz | 0.25 | — |\n",
		scaleDrawing: "20/300",
	} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v; want %q in\n%s", file, err, want, text)
		}
		if file == scaleHistory && strings.Count(string(text), "\n") != 2 {
			t.Errorf("want two lines in\n%s", text)
		}
	}
}

// TestAddTimes holds the percentiles.
func TestAddTimes(t *testing.T) {
	b := &bench{results: newResults()}
	r := &scaleRun{scale: &scale{bench: b}, plane: &plane{side: kthwd}}
	var times []time.Duration
	for i := range 100 {
		times = append(times, time.Duration(100-i)*time.Millisecond)
	}
	r.addTimes(scaleGet, times)
	r.addTimes(scalePatch, times[:1])
	for m, want := range map[*metric]float64{scaleGet.p50: 50, scaleGet.p99: 99, scalePatch.p50: 1, scalePatch.p99: 1} {
		if got := b.results.samples[m][kthwd][0].Value; got != want {
			t.Errorf("%s: got %v, want %v", m.key, got, want)
		}
	}
}
