package bench

import (
	"math"
	"strings"
	"testing"
)

func TestTargetMet(t *testing.T) {
	missing := math.NaN()
	for _, test := range []struct {
		target       target
		value, ratio float64
		want         string
	}{
		{target{ratioAtMost, 0.45}, 2, 0.45, "yes"},
		{target{ratioAtMost, 0.45}, 2, 0.46, "no"},
		{target{ratioAtLeast, 7}, 400, 7.1, "yes"},
		{target{ratioAtLeast, 7}, 400, 6.9, "no"},
		{target{valueAtMost, 3}, 1.1, missing, "yes"},
		{target{valueAtMost, 3}, 3.1, missing, "no"},
		{target{ratioAtMost, 0.45}, 2, missing, "?"},
		{target{}, 1, 1, ""},
	} {
		if got := test.target.met(test.value, test.ratio); got != test.want {
			t.Errorf("target %v: met(%v, %v) = %q; want %q", test.target, test.value, test.ratio, got, test.want)
		}
	}
}

// TestTable: ratios are those of the medians and of the rounds that both sides have.
func TestTable(t *testing.T) {
	r := newResults()
	for round, v := range []float64{4, 5, 3} {
		r.add(metricReady, separate, round, v)
	}
	for round, v := range []float64{1, 2, 3} {
		r.add(metricReady, kthwd, round, v)
	}
	r.add(metricStop, kthwd, 0, 1.25)
	var out strings.Builder
	r.table(&out, metrics)
	want := strings.Join([]string{
		"what                                                    separate            kthwd               ratio             reach     met?",
		"exec → /readyz ok, empty data directory                 4.00 s (3.00–5.00)  2.00 s (1.00–3.00)  0.50 (0.25–1.00)  ≤ 0.45 ×  no",
		"SIGTERM → exit, 50 watching (separate: apiserver only)  —                   1.25 s              —                 ≤ 3       yes",
		"",
	}, "\n")
	if got := out.String(); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
}
