package config

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Window is a time of each day, by this machine's clock and time zone, such as 03:00-05:00. One
// that ends before it begins passes midnight. The zero Window is never open.
type Window struct{ from, to clockTime }

// clockTime is a time of the day.
type clockTime struct{ hour, minute int }

// shortestWindow is the least length of a Window: a large database takes some minutes.
const shortestWindow = 10 * time.Minute

// ParseWindow parses FROM-TO, each as HH:MM. An empty text is the zero Window.
func ParseWindow(s string) (w Window, err error) {
	if s == "" {
		return w, nil
	}
	from, to, found := strings.Cut(s, "-")
	if !found {
		return w, errors.New("is not HH:MM-HH:MM")
	}
	if w.from, err = parseClockTime(from); err != nil {
		return Window{}, err
	}
	if w.to, err = parseClockTime(to); err != nil {
		return Window{}, err
	}
	if length := w.length(); length < shortestWindow {
		return Window{}, fmt.Errorf("is %v long; want %v or longer", length, shortestWindow)
	}
	return w, nil
}

// length is that of a window on a day whose clock is not changed.
func (w Window) length() time.Duration {
	minutes := (w.to.hour-w.from.hour)*60 + w.to.minute - w.from.minute
	return (time.Duration(minutes)*time.Minute + 24*time.Hour) % (24 * time.Hour)
}

func parseClockTime(s string) (clockTime, error) {
	at, err := time.Parse("15:04", strings.TrimSpace(s))
	if err != nil {
		return clockTime{}, fmt.Errorf("has %q, which is not a time of the day as HH:MM", s)
	}
	return clockTime{at.Hour(), at.Minute()}, nil
}

// on returns that time of a day.
func (c clockTime) on(day time.Time) time.Time {
	return time.Date(day.Year(), day.Month(), day.Day(), c.hour, c.minute, 0, 0, day.Location())
}

// At returns when the window that is open at a moment began and ends; false if none is open.
func (w Window) At(now time.Time) (begin, end time.Time, open bool) {
	if w == (Window{}) {
		return begin, end, false
	}
	for _, days := range []int{0, -1} {
		begin = w.from.on(now.AddDate(0, 0, days))
		if end = w.to.on(begin); w.from.hour*60+w.from.minute >= w.to.hour*60+w.to.minute {
			end = w.to.on(begin.AddDate(0, 0, 1))
		}
		if !end.After(begin) { // the clock skips the begin
			end = begin.Add(w.length())
		}
		if !now.Before(begin) && now.Before(end) {
			return begin, end, true
		}
	}
	return time.Time{}, time.Time{}, false
}
