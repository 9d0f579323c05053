package config

import (
	"strings"
	"testing"
	"time"
)

func TestParseWindow(t *testing.T) {
	for text, want := range map[string]string{
		"":              "",
		"03:00-05:00":   "",
		"23:30-00:10":   "",
		"3:00 - 5:00":   "",
		"00:00-23:59":   "",
		"03:00":         "is not HH:MM-HH:MM",
		"03:00-24:00":   `has "24:00", which is not a time of the day as HH:MM`,
		"-05:00":        `has "", which is not a time of the day`,
		"Sun 3:00-5:00": `has "Sun 3:00"`,
		"03:00-03:09":   "is 9m0s long; want 10m0s or longer",
		"03:00-03:00":   "is 0s long",
	} {
		_, err := ParseWindow(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestWindowAt(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip(err) // no data about time zones on this machine
	}
	const layout = "2006-01-02 15:04:05 -0700"
	for _, tt := range []struct{ window, now, begin, end string }{
		{"", "2026-06-01 03:00:00 +0200", "", ""},
		{"03:00-05:00", "2026-06-01 02:59:59 +0200", "", ""},
		{"03:00-05:00", "2026-06-01 03:00:00 +0200", "2026-06-01 03:00:00 +0200", "2026-06-01 05:00:00 +0200"},
		{"03:00-05:00", "2026-06-01 04:59:59 +0200", "2026-06-01 03:00:00 +0200", "2026-06-01 05:00:00 +0200"},
		{"03:00-05:00", "2026-06-01 05:00:00 +0200", "", ""},
		{"23:00-01:00", "2026-06-01 23:30:00 +0200", "2026-06-01 23:00:00 +0200", "2026-06-02 01:00:00 +0200"},
		{"23:00-01:00", "2026-06-02 00:30:00 +0200", "2026-06-01 23:00:00 +0200", "2026-06-02 01:00:00 +0200"},
		{"23:00-01:00", "2026-06-02 01:00:00 +0200", "", ""},
		// The clock goes back from 3:00 to 2:00, and later ahead from 2:00 to 3:00.
		{"01:00-04:00", "2026-10-25 02:30:00 +0100", "2026-10-25 01:00:00 +0200", "2026-10-25 04:00:00 +0100"},
		{"01:00-04:00", "2026-03-29 03:30:00 +0200", "2026-03-29 01:00:00 +0100", "2026-03-29 04:00:00 +0200"},
		// A window in the hour that is skipped comes an hour later, and is no longer than on other days.
		{"02:00-03:00", "2026-03-29 03:30:00 +0200", "2026-03-29 03:00:00 +0200", "2026-03-29 04:00:00 +0200"},
		{"02:00-03:00", "2026-03-29 12:00:00 +0200", "", ""},
		{"02:30-03:00", "2026-03-29 20:00:00 +0200", "", ""},
		{"02:00-03:00", "2026-03-30 02:30:00 +0200", "2026-03-30 02:00:00 +0200", "2026-03-30 03:00:00 +0200"},
	} {
		w, err := ParseWindow(tt.window)
		if err != nil {
			t.Fatal(err)
		}
		now, err := time.Parse(layout, tt.now)
		if err != nil {
			t.Fatal(err)
		}
		begin, end, open := w.At(now.In(berlin))
		if open != (tt.begin != "") || open && (begin.Format(layout) != tt.begin || end.Format(layout) != tt.end) {
			t.Errorf("%q at %s: got %v to %v, %v; want %q to %q", tt.window, tt.now, begin, end, open, tt.begin, tt.end)
		}
	}
}
