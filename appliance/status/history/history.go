// Package history keeps the last hour of a few measurements in memory, for the lines on
// the status page.
//
//	r := history.New(history.Memory(), other)
//	r.Sample(time.Now()) // often: it takes one sample in Interval
//	r.Lines()
//
// A Recorder has fixed arrays of MaxSeries series with Slots values each: its size never
// changes. It writes nothing to a disk, so a new process begins with an empty hour.
package history

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"strconv"
	"sync"
	"time"
)

// The size of a Recorder.
const (
	Interval  = 30 * time.Second
	Slots     = 120 // values of a series: one hour
	MaxSeries = 16
)

// Unit is that of all values of a series.
type Unit string

// The units.
const (
	Seconds     Unit = "seconds"
	PerSecond   Unit = "per second"
	Bytes       Unit = "bytes"
	Connections Unit = "connections"
)

// Series describes one measurement.
type Series struct {
	Name string `json:"name"`
	Unit Unit   `json:"unit"`
}

// Source reads one or more measurements at the same time. It must be cheap and must not
// block.
type Source struct {
	Series []Series
	// Read returns a value for each of Series, NaN for one that is not known. elapsed is
	// the time since its last call; 0 at the first one.
	Read func(elapsed time.Duration) []float64
}

// Recorder keeps the values. Make one with New. Its methods may be called from any
// goroutine.
type Recorder struct {
	mu      sync.Mutex
	sources []Source
	series  []Series
	values  [MaxSeries][Slots]float32 // of series; a ring each
	next    int                       // the slot of the next sample
	last    time.Time                 // of the last sample; zero before it
}

// New makes a Recorder. It ignores the series after the first MaxSeries.
func New(sources ...Source) *Recorder {
	r := &Recorder{}
	for _, s := range sources {
		if len(r.series)+len(s.Series) <= MaxSeries {
			r.sources, r.series = append(r.sources, s), append(r.series, s.Series...)
		}
	}
	for i := range r.values {
		for j := range r.values[i] {
			r.values[i][j] = float32(math.NaN())
		}
	}
	return r
}

// Sample reads all sources, unless the last sample is younger than Interval. A time
// without samples, such as the sleep of a machine, leaves a gap.
func (r *Recorder) Sample(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var elapsed time.Duration
	if !r.last.IsZero() {
		if elapsed = now.Sub(r.last); elapsed < Interval {
			return
		}
		missed := int(elapsed/Interval) - 1
		for range min(missed, Slots) {
			r.put(nil)
		}
	}
	r.last = now
	var all []float64
	for _, s := range r.sources {
		values := s.Read(elapsed)
		for i := range s.Series {
			if i < len(values) {
				all = append(all, values[i])
			} else {
				all = append(all, math.NaN())
			}
		}
	}
	r.put(all)
}

// put fills a slot of every series; without values it becomes a gap.
func (r *Recorder) put(values []float64) {
	for i := range r.series {
		v := math.NaN()
		if i < len(values) {
			v = values[i]
		}
		r.values[i][r.next] = float32(v)
	}
	r.next = (r.next + 1) % Slots
}

// Line is the last hour of a series.
type Line struct {
	Series
	Values Values `json:"values"` // Slots values, oldest first
}

// Values are measurements; NaN marks a gap, which is null in JSON.
type Values []float64

// MarshalJSON implements json.Marshaler.
func (v Values) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, f := range v {
		if i > 0 {
			b.WriteByte(',')
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			b.WriteString("null")
			continue
		}
		b.Write(strconv.AppendFloat(nil, f, 'g', 6, 64))
	}
	b.WriteByte(']')
	return b.Bytes(), nil
}

// Range returns the least, the greatest and the newest value; ok is false if there is
// none. The newest is NaN if the last sample had no value.
func (v Values) Range() (least, most, newest float64, ok bool) {
	least, most = math.Inf(1), math.Inf(-1)
	for _, f := range v {
		if !math.IsNaN(f) {
			least, most, ok = min(least, f), max(most, f), true
		}
	}
	if !ok {
		return 0, 0, 0, false
	}
	return least, most, v[len(v)-1], true
}

// Lines returns copies of the series that have a value.
func (r *Recorder) Lines() (all []Line) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, s := range r.series {
		line := Line{Series: s, Values: make(Values, 0, Slots)}
		for j := range Slots {
			line.Values = append(line.Values, float64(r.values[i][(r.next+j)%Slots]))
		}
		if _, _, _, ok := line.Values.Range(); ok {
			all = append(all, line)
		}
	}
	return all
}

// MarshalJSON writes the lines and the times of their values.
func (r *Recorder) MarshalJSON() ([]byte, error) {
	lines := r.Lines()
	r.mu.Lock()
	end := r.last
	r.mu.Unlock()
	return json.Marshal(struct {
		Interval float64   `json:"intervalSeconds"`
		End      time.Time `json:"end,omitzero"` // of the newest value
		Series   []Line    `json:"series"`
	}{Interval.Seconds(), end, lines})
}

// Memory reads the resident memory of this process.
func Memory() Source {
	page := float64(os.Getpagesize())
	return Source{[]Series{{"resident memory", Bytes}}, func(time.Duration) []float64 {
		text, err := os.ReadFile("/proc/self/statm")
		fields := bytes.Fields(text)
		if err != nil || len(fields) < 2 {
			return nil
		}
		pages, err := strconv.ParseFloat(string(fields[1]), 64)
		if err != nil {
			return nil
		}
		return []float64{pages * page}
	}}
}

// Histogram turns a Prometheus histogram into what has been new in it since the last
// call. The zero value is ready for use.
type Histogram struct {
	last []uint64
	seen bool
}

// Next takes the upper bounds of the buckets and their cumulative counts; the last count
// is of all observations. It returns the number of new ones, and estimates their 99th
// percentile as Prometheus' histogram_quantile does: NaN if there are none, or at the
// first call.
func (h *Histogram) Next(bounds []float64, counts []uint64) (p99 float64, n uint64) {
	before, seen := h.last, h.seen && len(h.last) == len(counts)
	h.last, h.seen = append([]uint64(nil), counts...), true
	if !seen || len(counts) != len(bounds)+1 {
		return math.NaN(), 0
	}
	all := len(counts) - 1
	if n = counts[all] - before[all]; n == 0 || counts[all] < before[all] {
		return math.NaN(), 0
	}
	rank, below, lower := 0.99*float64(n), 0.0, 0.0
	for i, bound := range bounds {
		here := float64(counts[i] - before[i])
		if here >= rank && here > below {
			return lower + (bound-lower)*(rank-below)/(here-below), n
		}
		below, lower = here, bound
	}
	return lower, n // at least: it lies above the last bucket
}
