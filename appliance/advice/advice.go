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
// before joining.
//
// The package prints nothing and imports nothing of kthwd.
package advice

import "errors"

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
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return usage{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, Usage(e))
	}
	return errors.Join(all...)
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
