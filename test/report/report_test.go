package report

import (
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		name   string
		values []float64
		want   float64
	}{
		{"one", []float64{3}, 3},
		{"odd", []float64{9, 1, 4}, 4},
		{"even", []float64{1, 10, 2, 4}, 3},
	} {
		if got := Median(test.values); got != test.want {
			t.Errorf("%s: Median(%v) = %v; want %v", test.name, test.values, got, test.want)
		}
	}
}

// TestPairs: a round counts when both sides have it and theirs is positive.
func TestPairs(t *testing.T) {
	ours := []Sample{{0, 1}, {1, 2}, {2, 3}, {3, 4}}
	theirs := []Sample{{0, 2}, {1, 0}, {3, 3}}
	if got, want := Pairs(ours, theirs), []float64{0.5, 1.333}; !slices.Equal(got, want) {
		t.Errorf("Pairs = %v; want %v", got, want)
	}
}

func TestText(t *testing.T) {
	half := 0.5
	for _, test := range []struct{ got, want string }{
		{SpreadOf(nil).Text("s"), "—"},
		{SpreadOf([]Sample{{0, 1.25}}).Text("s"), "1.25 s"},
		{SpreadOf([]Sample{{0, 123.4}, {1, 99.96}}).Text(""), "112 (100.0–123)"},
		{RatioText(nil, nil, "s"), "—"},
		{RatioText(&half, []float64{1}, "%"), "—"},
		{RatioText(&half, []float64{0.25, 1}, "s"), "0.50 (0.25–1.00)"},
	} {
		if test.got != test.want {
			t.Errorf("got %q; want %q", test.got, test.want)
		}
	}
}
