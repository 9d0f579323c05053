package kthwtest

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"kthwd/test/harness"
)

// WaitFor is harness.WaitFor, for the tests that import this package anyway.
func WaitFor(t testing.TB, what string, within time.Duration, cond func() error) {
	t.Helper()
	harness.WaitFor(t, what, within, cond)
}

// AtOnce lets n parallel tests of a package run at the same time, whatever the number of
// processors, unless -parallel says another number. TestMain calls it before m.Run. Tests
// with processes wait most of the time; each of a cluster has five of some 300 MB.
func AtOnce(n int) {
	if flag.Parse(); isGiven("test.parallel") {
		return
	}
	if err := flag.Set("test.parallel", strconv.Itoa(n)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func isGiven(name string) (given bool) {
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
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
