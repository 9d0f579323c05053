package report

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func TestSlope(t *testing.T) {
	for _, test := range []struct {
		x, y []float64
		want float64
	}{
		{[]float64{1, 2, 3}, []float64{10, 12, 14}, 2},
		{[]float64{1, 2, 3}, []float64{5, 5, 5}, 0},
		{[]float64{0, 1, 2}, []float64{0, 2, 1}, 0.5},
		{[]float64{1}, []float64{9}, 0},
		{nil, nil, 0},
	} {
		if got := Slope(test.x, test.y); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("Slope(%v, %v) = %v; want %v", test.x, test.y, got, test.want)
		}
	}
}

// TestSVG holds that the drawing is well-formed and has each curve, whatever the names and values.
func TestSVG(t *testing.T) {
	two := []Curve{{"a < b", []float64{1, 2}}, {"kthwd", []float64{0.5, 1}}}
	for name, panels := range map[string][]Panel{
		"none":     nil,
		"one size": {{Title: "RSS & more", X: []float64{1}, Labels: []string{"1/1"}, Curves: []Curve{{"x", []float64{0}}}}},
		"several":  {{"RSS", []float64{1, 3}, []string{"1", "3"}, two}, {"CPU", []float64{1, 3}, []string{"1", "3"}, two}, {"t", []float64{1, 3}, []string{"1", "3"}, two}},
	} {
		drawn := SVG(panels)
		d := xml.NewDecoder(strings.NewReader(drawn))
		var err error
		for err == nil {
			_, err = d.Token()
		}
		if !errors.Is(err, io.EOF) || strings.Contains(drawn, "NaN") {
			t.Errorf("%s: %v:\n%s", name, err, drawn)
		}
		curves := 0
		for _, p := range panels {
			curves += len(p.Curves)
		}
		if got := strings.Count(drawn, "<polyline"); got != curves {
			t.Errorf("%s: %d curves are drawn, want %d", name, got, curves)
		}
	}
}
