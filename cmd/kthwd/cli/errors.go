package cli

import (
	"errors"
	"fmt"

	"kthwd/appliance/advice"
	"kthwd/appliance/config"
)

// Usagef makes the error of a mistake in a command line or a configuration: exit code 2.
func Usagef(format string, args ...any) error { return advice.Usage(fmt.Errorf(format, args...)) }

// IsUsage reports whether err is, or contains, a mistake in a command line or a
// configuration. Package appliance marks flags that a program refuses with Usage, too.
func IsUsage(err error) bool {
	var marked interface{ Usage() bool }
	var problem *config.Problem
	return errors.As(err, &marked) && marked.Usage() || errors.As(err, &problem)
}

// downError wraps the reason why a kthwd returned no status: exit code 2.
type downError struct{ error }

func (d *downError) Unwrap() error { return d.error }

// Down wraps the reason why a kthwd returned no status.
func Down(why error) error { return &downError{why} }

// Exit codes 1 and 2 without an error line: the output already said it.
var (
	ErrDegraded = errors.New("degraded")
	ErrDown     = errors.New("down")
)

// Exited is the exit code of a command, which has said all there is to say.
type Exited int

func (e Exited) Error() string { return fmt.Sprintf("exit code %d", int(e)) }
