package history

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// counter is a source whose values count its calls.
func counter(calls *int) Source {
	return Source{[]Series{{"calls", PerSecond}, {"missing", Bytes}}, func(time.Duration) []float64 {
		*calls++
		return []float64{float64(*calls)}
	}}
}

// The whole of a Recorder stays below 200 KiB, whatever is sampled.
func TestSize(t *testing.T) {
	const limit = 200 << 10
	var r Recorder
	descriptions := MaxSeries * int(unsafe.Sizeof(Series{})+unsafe.Sizeof(Source{})+unsafe.Sizeof(Histogram{}))
	if size := int(unsafe.Sizeof(r)) + descriptions; size > limit {
		t.Errorf("%d bytes, want %d at most", size, limit)
	} else {
		t.Logf("%d bytes for %d series of %d values", size, MaxSeries, Slots)
	}
	calls := 0
	var many []Source
	for range 2 * MaxSeries {
		many = append(many, counter(&calls))
	}
	full := New(many...)
	for i := range 3 * Slots {
		full.Sample(noon.Add(time.Duration(i) * Interval))
	}
	if len(full.series) != MaxSeries {
		t.Errorf("%d series, want %d at most", len(full.series), MaxSeries)
	}
	for _, l := range full.Lines() {
		if len(l.Values) != Slots {
			t.Errorf("%s: %d values, want %d", l.Name, len(l.Values), Slots)
		}
	}
}

// An hour of samples is kept, the newest last; a series without values is not shown.
func TestHour(t *testing.T) {
	calls := 0
	r := New(counter(&calls))
	if lines := r.Lines(); lines != nil {
		t.Errorf("before the first sample: got %v", lines)
	}
	for i := range Slots + 10 {
		at := noon.Add(time.Duration(i) * Interval)
		r.Sample(at)
		r.Sample(at.Add(Interval / 2)) // too early
	}
	lines := r.Lines()
	if calls != Slots+10 || len(lines) != 1 {
		t.Fatalf("got %d samples and the lines %v", calls, lines)
	}
	if least, most, newest, ok := lines[0].Values.Range(); !ok || least != 11 || most != Slots+10 || newest != Slots+10 {
		t.Errorf("got %v to %v, newest %v", least, most, newest)
	}
}

// The sleep of a machine is a gap, and no jump of a line.
func TestGap(t *testing.T) {
	calls := 0
	r := New(counter(&calls))
	r.Sample(noon)
	r.Sample(noon.Add(4*Interval + time.Second))
	v := r.Lines()[0].Values
	if got := v[Slots-5:]; got[0] != 1 || !math.IsNaN(got[1]) || !math.IsNaN(got[3]) || got[4] != 2 {
		t.Errorf("got %v", got)
	}
	r.Sample(noon.Add(1000 * time.Hour))
	if _, _, newest, ok := r.Lines()[0].Values.Range(); !ok || newest != 3 {
		t.Errorf("after a long sleep: got %v", newest)
	}
}

func TestJSON(t *testing.T) {
	calls := 0
	r := New(counter(&calls))
	r.Sample(noon)
	text, err := json.Marshal(r)
	if err != nil || !json.Valid(text) {
		t.Fatalf("%v: %s", err, text)
	}
	for _, want := range []string{`"intervalSeconds":30`, `"end":"2026-01-02T12:00:00Z"`, `"name":"calls"`, `"unit":"per second"`, `null,1]`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("lacks %s: %s", want, text)
		}
	}
}

// The percentile is that of what is new since the last call.
func TestHistogram(t *testing.T) {
	var h Histogram
	bounds := []float64{1, 2, 4}
	for i, tt := range []struct {
		counts []uint64
		p99    float64
		n      uint64
	}{
		{[]uint64{1000, 1000, 1000, 1000}, math.NaN(), 0}, // the first call
		{[]uint64{1000, 1000, 1000, 1000}, math.NaN(), 0}, // nothing is new
		{[]uint64{1000, 1100, 1100, 1100}, 1.99, 100},
		{[]uint64{1000, 1100, 1100, 1200}, 4, 100}, // above the last bucket
		{[]uint64{1, 1, 1, 1}, math.NaN(), 0},      // a new process's
	} {
		p99, n := h.Next(bounds, tt.counts)
		if n != tt.n || !(math.IsNaN(p99) && math.IsNaN(tt.p99)) && math.Abs(p99-tt.p99) > 1e-9 {
			t.Errorf("%d: got %v of %d, want %v of %d", i, p99, n, tt.p99, tt.n)
		}
	}
}

func TestMemory(t *testing.T) {
	text, err := os.ReadFile("/proc/self/status")
	_, after, found := strings.Cut(string(text), "\nVmRSS:")
	if err != nil || !found {
		t.Fatalf("the kernel's own figure: %v, %q", err, text)
	}
	var kib float64
	fmt.Sscan(after, &kib)
	if got := Memory().Read(0); len(got) != 1 || got[0] < kib*1024/2 || got[0] > kib*1024*2 {
		t.Errorf("got %v bytes, and the kernel says %v KiB", got, kib)
	}
}

func BenchmarkMemory(b *testing.B) {
	s := Memory()
	for b.Loop() {
		s.Read(0)
	}
}
