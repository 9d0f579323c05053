// Package advice attaches a hint to an error: one line that tells a person what to do.
//
// With adds the hint where the error is made, because that code has the facts:
//
//	return advice.With(fmt.Errorf("read %s: %w", path, err), "mount the disk")
//
// Of finds the hint of an error, however deep it is wrapped; the program that
// shows errors calls it once, at the end. Usage marks an error as a mistake in the
// command line or the configuration, from which the exit code 2 follows. Usage
// marks each error of an errors.Join; With does not look into one, so add the hint
// before joining. Lines takes an errors.Join apart, for a program that shows each
// error on a line of its own.
//
// The package prints nothing and imports nothing of kthwd.
package advice

import (
	"errors"
	"strings"
)

// hinted is an error with advice.
type hinted struct {
	error
	hint string
}

// With adds advice to err. Of finds it again, by errors.As on an interface with the
// method Hint() string.
func With(err error, hint string) error { return &hinted{err, hint} }

// Hint is the advice: one line, what to do.
func (h *hinted) Hint() string { return h.hint }

// usage is a mistake in the user's input, as opposed to a failure while running.
type usage struct{ error }

// Usage marks the error for the caller's exit code.
func (usage) Usage() bool { return true }

// Unwrap gives errors.Is and errors.As the error itself.
func (u usage) Unwrap() error { return u.error }

// Usage marks err, or each error that errors.Join put into it.
func Usage(err error) error {
	var all []error
	for _, e := range Lines(err) {
		all = append(all, usage{e})
	}
	if len(all) == 1 {
		return all[0]
	}
	return errors.Join(all...)
}

// Lines takes errors.Join apart, and nothing else: an error that wraps two causes in one
// sentence stays whole. It returns none for nil.
func Lines(err error) (all []error) {
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
		all = append(all, Lines(e)...)
	}
	if strings.Join(lines, "\n") != err.Error() {
		return []error{err}
	}
	return all
}

// Unwrap gives errors.Is and errors.As the error itself.
func (h *hinted) Unwrap() error { return h.error }

// Of returns the advice that err carries, and whether it carries any.
func Of(err error) (hint string, ok bool) {
	h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err)
	if !ok {
		return "", false
	}
	return h.Hint(), true
}
