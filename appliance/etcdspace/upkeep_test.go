package etcdspace

import (
	"testing"
	"time"
)

// A window has one run, and the next one has its own, also after a clock that was ahead.
func TestRanIn(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	end := begin.Add(2 * time.Hour)
	for name, tt := range map[string]struct {
		last time.Time
		want bool
	}{
		"never":          {time.Time{}, false},
		"the day before": {begin.Add(-23 * time.Hour), false},
		"in it":          {begin.Add(time.Minute), true},
		"a year later":   {begin.AddDate(1, 0, 0), false},
	} {
		u := NewUpkeep(UpkeepConfig{})
		u.begun = tt.last
		if got := u.ranIn(begin, end); got != tt.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
