package appliance

// hinted is an error that knows what a person can do about it.
type hinted struct {
	error
	hint string
}

// WithHint adds advice to err. Whoever shows the error finds it with errors.As
// on an interface with the method Hint() string.
func WithHint(err error, hint string) error { return &hinted{err, hint} }

// Hint is the advice: one line, what to do.
func (h *hinted) Hint() string { return h.hint }

// Unwrap gives errors.Is and errors.As the error itself.
func (h *hinted) Unwrap() error { return h.error }
