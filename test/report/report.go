// Package report computes and prints the figures of a benchmark: the spread of one side,
// the ratio of two sides, and their text in a table. A round measures each side once.
//
// It imports the standard library only.
package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Sample is one measured value.
type Sample struct {
	Round int
	Value float64
}

// Spread summarises the samples of one side, for a table and for JSON.
type Spread struct {
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	All    []float64 `json:"all"`
}

// SpreadOf returns the spread of samples; nil when there are none.
func SpreadOf(samples []Sample) *Spread {
	if len(samples) == 0 {
		return nil
	}
	s := &Spread{}
	for _, v := range samples {
		s.All = append(s.All, Round3(v.Value))
	}
	s.Median, s.Min, s.Max = Median(s.All), slices.Min(s.All), slices.Max(s.All)
	return s
}

// Median returns the middle value, or the mean of the two middle values.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Round3((sorted[(n-1)/2] + sorted[n/2]) / 2)
}

// Round3 rounds to three decimals, as all figures in JSON are.
func Round3(v float64) float64 { return math.Round(v*1000) / 1000 }

// Pairs returns the ratio of ours to theirs for each round that both have.
func Pairs(ours, theirs []Sample) (ratios []float64) {
	for _, a := range ours {
		for _, b := range theirs {
			if a.Round == b.Round && b.Value > 0 {
				ratios = append(ratios, Round3(a.Value/b.Value))
			}
		}
	}
	return ratios
}

// Metric is one figure of several sides, for JSON. One side is called "kthwd".
type Metric struct {
	Unit  string             `json:"unit"`
	Sides map[string]*Spread `json:"sides"`
	To    string             `json:"to"`    // the side that kthwd is compared with
	Ratio float64            `json:"ratio"` // of the medians
	Pairs []float64          `json:"pairs"` // the ratios of the rounds
}

// MetricOf summarises the samples of each side and compares kthwd's with those of the side to.
func MetricOf(unit string, samples map[string][]Sample, to string) Metric {
	m := Metric{Unit: unit, Sides: map[string]*Spread{}, To: to, Pairs: Pairs(samples["kthwd"], samples[to])}
	for side, all := range samples {
		m.Sides[side] = SpreadOf(all)
	}
	m.Ratio = Round3(m.Sides["kthwd"].Median / m.Sides[to].Median)
	return m
}

// Text returns the median with its unit and, with several samples, the range; a dash
// for nil.
func (s *Spread) Text(unit string) string {
	if s == nil {
		return "—"
	}
	text := strings.TrimSpace(figure(s.Median) + " " + unit)
	if len(s.All) > 1 {
		text += " (" + figure(s.Min) + "–" + figure(s.Max) + ")"
	}
	return text
}

// RatioText returns the ratio of the medians and, with several pairs, their range; a
// dash for nil and for a metric in per cent.
func RatioText(ratio *float64, pairs []float64, unit string) string {
	if ratio == nil || unit == "%" {
		return "—"
	}
	text := fmt.Sprintf("%.2f", *ratio)
	if len(pairs) > 1 {
		text += fmt.Sprintf(" (%.2f–%.2f)", slices.Min(pairs), slices.Max(pairs))
	}
	return text
}

// figure formats a value with about three digits.
func figure(v float64) string {
	switch {
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
