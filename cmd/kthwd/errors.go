package main

import (
	"errors"
	"fmt"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
)

// usagef makes the error of a mistake in a command line or a configuration: exit code 2.
func usagef(format string, args ...any) error { return advice.Usage(fmt.Errorf(format, args...)) }

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
