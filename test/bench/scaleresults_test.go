package bench

import (
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
