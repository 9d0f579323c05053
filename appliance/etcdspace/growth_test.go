package etcdspace

import (
	"encoding/json"
	"testing"
	"time"
)

func TestTrend(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	grown := func(hours int, perHour int64) (s samples) {
		for i := range hours + 1 {
			s.add(now.Add(time.Duration(i-hours)*time.Hour), 1000+int64(i)*perHour)
		}
		return s
	}
	for name, tt := range map[string]struct {
		s      samples
		known  bool
		perDay float64
		full   time.Duration // from now; 0 for never
		says   string
	}{
		"none":          {samples{}, false, 0, 0, "not known yet: kthwd needs six hours of samples"},
		"a morning":     {grown(5, 10), false, 0, 0, "not known yet: kthwd needs six hours of samples"},
		"a day":         {grown(24, 10), true, 240, 50 * 24 * time.Hour, "240 B a day over the last 1d0h; full on 2027-03-06"},
		"it shrinks":    {grown(24, -10), true, -240, 0, "none over the last 1d0h"},
		"hardly at all": {grown(24*13, 0), true, 0, 0, "none over the last 13d0h"},
		"two weeks":     {grown(24*20, 10), true, 240, 50 * 24 * time.Hour, "240 B a day over the last 13d23h; full on 2027-03-06"},
	} {
		got := tt.s.trend(2000, 14000, now)
		if (got != nil) != tt.known || got.String() != tt.says {
			t.Errorf("%s: got %+v, %q, want %q", name, got, got.String(), tt.says)
			continue
		}
		if !tt.known {
			continue
		}
		full := time.Duration(0)
		if !got.Full.IsZero() {
			full = got.Full.Sub(now)
		}
		if d := got.PerDay - tt.perDay; d > 1e-6 || d < -1e-6 || (full-tt.full).Abs() > time.Minute {
			t.Errorf("%s: got %v a day, full in %v; want %v, %v", name, got.PerDay, full, tt.perDay, tt.full)
		}
	}
}

// What somebody else has written below the key is no trend, and no crash.
func TestForeignSamples(t *testing.T) {
	for _, data := range []string{"", "x", `{"at":[1,2],"inUse":[1]}`, `{"at":[3,2,1],"inUse":[1,2,3]}`, `{"at":[1,1,1],"inUse":[1,2,3]}`} {
		if got := parseSamples([]byte(data)).trend(1, 2, time.Now()); got != nil {
			t.Errorf("%s: got %+v", data, got)
		}
	}
	var s samples
	s.add(time.Unix(1, 0), 2)
	data, err := json.Marshal(s)
	if err != nil || len(parseSamples(data).At) != 1 {
		t.Errorf("%s, %v", data, err)
	}
	if s.due(time.Unix(1+3599, 0)) || !s.due(time.Unix(1+3600, 0)) || !s.due(time.Unix(-7200, 0)) {
		t.Error("a sample is due each hour")
	}
}
