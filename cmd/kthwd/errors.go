package main

import (
	"errors"
	"fmt"
	"strings"

	"kthwd/appliance/config"
)

// usageError marks a mistake in a command line or a configuration: exit code 2.
type usageError struct{ error }

func (u usageError) Usage() bool   { return true }
func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// isUsage reports whether err is, or contains, a mistake in a command line or a
// configuration. Package appliance marks flags that a program refuses with Usage, too.
func isUsage(err error) bool {
	var marked interface{ Usage() bool }
	var problem *config.Problem
	return errors.As(err, &marked) && marked.Usage() || errors.As(err, &problem)
}

// downError wraps the reason why a kthwd returned no status: exit code 2.
type downError struct{ error }

func (d *downError) Unwrap() error { return d.error }

// Exit codes 1 and 2 without an error line: the output already said it.
var (
	errDegraded = errors.New("degraded")
	errDown     = errors.New("down")
)

// flatten takes errors.Join apart, and nothing else: an error that wraps two causes
// in one sentence stays whole. It returns none for nil.
func flatten(err error) (all []error) {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var lines []string
	for _, e := range joined.Unwrap() {
		lines = append(lines, e.Error())
		all = append(all, flatten(e)...)
	}
	if strings.Join(lines, "\n") != err.Error() {
		return []error{err}
	}
	return all
}
