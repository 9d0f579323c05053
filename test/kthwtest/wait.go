package kthwtest

import (
	"strings"
	"testing"
	"time"

	"kthwd/test/harness"
)

// Soon is for conditions whose time no test measures. It only bounds a hang: a busy machine
// may need long.
const Soon = 5 * time.Minute

// WaitFor is harness.WaitFor, for the tests that import this package anyway.
func WaitFor(t testing.TB, what string, within time.Duration, cond func() error) {
	t.Helper()
	harness.WaitFor(t, what, within, cond)
}

// Log is the output of a process.
type Log struct{ harness.Log }

// UnloggedLines counts the lines that upstream's own loggers wrote without kthwd's logger.
func (l *Log) UnloggedLines() int { return strings.Count("\n"+l.String(), "\n{\"level\":") }

// Tail is the last n lines.
func (l *Log) Tail(n int) string {
	lines := strings.Split(strings.TrimRight(l.String(), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
