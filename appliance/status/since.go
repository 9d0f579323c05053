package status

import (
	"strings"
	"sync"
	"time"
)

// beginnings remembers when the health became what it is, and when each finding was first
// seen, for those that do not know it themselves. The zero value is ready for use.
type beginnings struct {
	mu       sync.Mutex
	health   Health
	at       time.Time
	findings map[string]time.Time
}

// complete sets HealthSince, and Since of the findings, in an assessed report.
func (b *beginnings) complete(r *Report, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.health == "":
		b.health, b.at = r.Health, r.Started
	case b.health != r.Health:
		b.health, b.at = r.Health, now
	}
	r.HealthSince = b.at
	present := map[string]time.Time{}
	for i, f := range r.Findings {
		key := f.key()
		at, known := b.findings[key]
		if !known {
			at = now
		}
		if present[key] = at; f.Since.IsZero() {
			r.Findings[i].Since = at
		}
	}
	b.findings = present
}

// key is the same while only the numbers in a finding change.
func (f Finding) key() string {
	return f.Kind + " " + strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return '#'
		}
		return r
	}, f.Text)
}
