package text

import (
	"regexp"
	"sync"
)

// Pattern returns a function that compiles a regular expression at its first call, and panics there
// if it is wrong. It is for patterns that few calls of the program need: each call would pay for
// them before main begins, and a bound such as {0,251} makes a program of hundreds of steps.
func Pattern(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}
