package stages

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/etcd"
	"kthwd/appliance/others"
	"kthwd/appliance/status"
	"kthwd/appliance/text"
)

// Answer is the part of a controller's answer that is the same in every change. Embed it.
type Answer struct {
	Name  string `json:"name"`
	Error string `json:"error,omitempty"` // why it cannot take part
	Hint  string `json:"hint,omitempty"`
}

// Failed sets the error, with its advice.
func (a *Answer) Failed(err error) {
	a.Error = err.Error()
	a.Hint, _ = advice.Of(err)
}

func (a *Answer) answer() *Answer { return a }

// answering is a pointer to a struct that embeds Answer.
type answering[C any] interface {
	*C
	answer() *Answer
}

// Ask asks all controllers at path, this one by own, and returns its answer first. One that does
// not answer within that time has an Error.
func Ask[C any, P answering[C]](ctx context.Context, o *others.Others, path string, question any, within time.Duration, own func() C) ([]C, error) {
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	here := make(chan C, 1)
	go func() { here <- own() }()
	answers := o.Call(ctx, path, body, within)
	all := []C{<-here}
	for _, a := range answers {
		var c C
		if a.Err == nil && json.Unmarshal(a.Body, &c) != nil {
			a.Err = errors.New("its answer is not that of a controller")
		}
		is := P(&c).answer()
		if is.Name = a.Name; a.Err != nil {
			is.Error, is.Hint = text.Joined(a.Err.Error()), "start "+a.Name+", or remove it with kthwd member remove "+a.Name
		}
		all = append(all, c)
	}
	return all, ctx.Err()
}

// Complaints is a LateError that names each controller that cannot take part; nil without one.
func Complaints[C any, P answering[C]](all []C) error {
	var said, hints, names []string
	for i := range all {
		c := P(&all[i]).answer()
		if c.Error == "" {
			continue
		}
		said, names = append(said, c.Name+": "+c.Error), append(names, c.Name)
		if c.Hint != "" && !slices.Contains(hints, c.Hint) {
			hints = append(hints, c.Hint)
		}
	}
	late := &LateError{names, errors.New(strings.Join(said, "; "))}
	switch {
	case len(said) == 0:
		return nil
	case len(hints) == 0:
		return late
	}
	return advice.With(late, strings.Join(hints, "; "))
}

// maxQuestion bounds what another controller may send: a question has a file of keys at most.
const maxQuestion = 1 << 20

// Peer answers the controller that carries a change on. Give it to others.Handle.
func Peer[Question, C any](answer func(context.Context, Question) C) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in Question
		if r.Method != http.MethodPost || json.NewDecoder(io.LimitReader(r.Body, maxQuestion)).Decode(&in) != nil {
			http.Error(w, "not a request of a rotation", http.StatusBadRequest)
			return
		}
		unhurried(w)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer(r.Context(), in)) // an error means that the other one has gone
	})
}

// Verbs returns the handler of the verbs for the unix socket, at path.
func Verbs[Request, Report any](path string, do func(context.Context, Request) (Report, error)) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{"POST " + path: func(w http.ResponseWriter, r *http.Request) {
		unhurried(w)
		var in Request
		err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&in)
		var out Report
		if err == nil {
			out, err = do(r.Context(), in)
		}
		if err != nil {
			code := http.StatusConflict
			if _, early := errors.AsType[*tooEarly](err); early {
				code = status.TooEarly
			}
			status.Refuse(w, code, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // an error means that the client has gone
	}}
}

// tooEarly is an error that time takes away.
type tooEarly struct{ error }

func (e *tooEarly) Unwrap() error { return e.error }

// TooEarly marks the refusal of a verb that will be accepted later, without a change by anybody:
// the client may ask again. It returns nil for nil.
func TooEarly(err error) error {
	if err == nil {
		return nil
	}
	return &tooEarly{err}
}

// unhurried takes the deadlines away: a look at all of etcd, the end of a term, and a controller that
// is away take longer than other answers may.
func unhurried(w http.ResponseWriter) {
	c := http.NewResponseController(w)
	_ = errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})) // not each server has them
}

// Admit reads a state until there is a quorum, and returns what admits says of it. A state without
// a seal, whose error is noSeal, admits everyone, and so does the end of ctx.
func Admit[State any](ctx context.Context, read func() (State, error), noSeal error, admits func(State) error) error {
	for {
		s, err := read()
		switch {
		case ctx.Err() != nil, errors.Is(err, noSeal):
			return nil
		case err == nil:
			return admits(s)
		}
		select {
		case <-time.After(etcd.QuorumPoll):
		case <-ctx.Done():
			return nil
		}
	}
}
