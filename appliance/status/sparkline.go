package status

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"

	"kthwd/appliance/status/history"
	"kthwd/appliance/text"
	"kthwd/lb"
)

// sparkline is the last hour of a series, as lines from 0 to its greatest value, and in
// text.
type sparkline struct {
	Name, Now, Least, Most string
	Pieces                 []string // points of an SVG polyline; gaps separate them
}

// The size of a sparkline in its own units. One pixel at the top and at the bottom stays
// free.
const (
	sparkWidth  = 120.0
	sparkHeight = 32.0
)

func sparklines(lines []history.Line) (all []sparkline) {
	for _, l := range lines {
		least, most, newest, ok := l.Values.Range()
		if !ok {
			continue
		}
		all = append(all, sparkline{
			Name: l.Name, Now: valueText(newest, l.Unit), Least: valueText(least, l.Unit), Most: valueText(most, l.Unit), Pieces: pieces(l.Values, most),
		})
	}
	return all
}

func pieces(values []float64, most float64) (all []string) {
	if most <= 0 {
		most = 1
	}
	step := sparkWidth / float64(max(len(values)-1, 1))
	var points []string
	end := func() {
		if len(points) == 1 { // a single value is a dot
			points = append(points, points[0])
		}
		if len(points) > 0 {
			all = append(all, strings.Join(points, " "))
		}
		points = nil
	}
	for i, v := range values {
		if math.IsNaN(v) {
			end()
			continue
		}
		points = append(points, fmt.Sprintf("%.1f,%.1f", float64(i)*step, 1+(sparkHeight-2)*(1-v/most)))
	}
	end()
	return all
}

// valueText is a value with its unit.
func valueText(v float64, unit history.Unit) string {
	switch {
	case math.IsNaN(v):
		return "none now"
	case unit == history.Seconds:
		return time.Duration(v * float64(time.Second)).Round(10 * time.Microsecond).String()
	case unit == history.Bytes:
		return text.Bytes(int64(v))
	case unit == history.PerSecond:
		return fmt.Sprintf("%.1f/s", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// balancerHistory reads the connections of a load balancer and their rate. last returns
// its last state; nil without one.
func balancerHistory(last func() *lb.Status) history.Source {
	var before uint64
	known := false
	return history.Source{
		Series: []history.Series{{Name: "lb connections", Unit: history.Connections}, {Name: "lb new connections", Unit: history.PerSecond}},
		Read: func(elapsed time.Duration) []float64 {
			s := last()
			if s == nil {
				return nil
			}
			var accepted uint64
			for _, l := range s.Listen {
				accepted += l.Accepted
			}
			rate := math.NaN()
			if known && elapsed > 0 && accepted >= before {
				rate = float64(accepted-before) / elapsed.Seconds()
			}
			before, known = accepted, true
			return []float64{float64(s.Connections), rate}
		},
	}
}

// lastLB returns the load balancer's part of the last report.
func (w *watcher) lastLB() *lb.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last.LB
}

func (s *Server) historyJSON(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.history) // it fails only when the client has gone
}
