package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/advice"
	"kthwd/appliance/text"
)

// Stop is the reason why a change does not go on. The controller that carried it on has left it in
// etcd, for people only: nothing is decided by it.
type Stop struct {
	By   string    `json:"by"`
	At   time.Time `json:"at"`
	Why  string    `json:"why"`
	Hint string    `json:"hint,omitempty"`
	Late []string  `json:"late,omitempty"` // the controllers that keep it from going on
}

// StopKey is the key of the Stop in etcd.
func (k Kind) StopKey() string { return k.Prefix + "stopped" }

// LateError is an error of controllers that cannot take part, or have not taken a stage.
type LateError struct {
	Names []string
	err   error
}

func (l *LateError) Error() string { return l.err.Error() }

// Unwrap returns the errors of the controllers.
func (l *LateError) Unwrap() error { return l.err }

// leave leaves a Stop in etcd, unless another controller acts.
func (h *Hold) leave(ctx context.Context, client *clientv3.Client, s Stop) error {
	content, err := json.Marshal(s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	_, err = client.Txn(ctx).If(h.Valid()).Then(clientv3.OpPut(h.kind.StopKey(), string(content))).Commit()
	return err
}

// goesOn removes the Stop of before.
func (h *Hold) goesOn(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	_, err := client.Delete(ctx, h.kind.StopKey())
	return err
}

// Acts returns the controller that acts, empty for none, and the reason why the change has stopped; nil
// if no controller has left one.
func (k Kind) Acts(ctx context.Context, client *clientv3.Client, o ...clientv3.OpOption) (holder string, stop *Stop, err error) {
	ctx, cancel := context.WithTimeout(ctx, RecordTimeout)
	defer cancel()
	answer, err := client.Get(ctx, k.Prefix, append(o, clientv3.WithPrefix())...)
	if err != nil {
		return "", nil, fmt.Errorf("read %s in etcd: %w", k.Prefix, err)
	}
	for _, kv := range answer.Kvs {
		switch string(kv.Key) {
		case k.HolderKey():
			holder = string(kv.Value)
		case k.StopKey():
			var s Stop
			if json.Unmarshal(kv.Value, &s) == nil && s.Why != "" {
				stop = &s
			}
		}
	}
	if holder != "" {
		stop = nil // of before
	}
	return holder, stop, nil
}

// stopOf is the Stop of an error.
func stopOf(err error, name string) Stop {
	s := Stop{By: name, At: time.Now().UTC(), Why: err.Error(), Late: lateOf(err)}
	s.Hint, _ = advice.Of(err)
	return s
}

// lateOf names the controllers that an error is about.
func lateOf(err error) []string {
	if late, ok := errors.AsType[*LateError](err); ok {
		return late.Names
	}
	return nil
}

// Follow returns the controller that acts, empty for none, and keeps the reason of a stop for Why and
// Late. Call it again and again while a change is under way.
func (r *Runner) Follow(ctx context.Context, client *clientv3.Client) (holder string, err error) {
	holder, stop, err := r.cfg.Kind.Acts(ctx, client)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left = stop; holder != "" && !r.acting {
		r.stopped = nil // another one has taken it over
	}
	return holder, nil
}

// Why is the reason why a change does not go on: the one that this controller knows, or the one that the
// controller which carried it on has left; empty if there is neither, or while it goes on here.
func (r *Runner) Why() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.acting:
		return ""
	case r.stopped != nil:
		return r.stopped.Error()
	case r.left != nil:
		return text.Line(r.left.Why)
	}
	return ""
}

// Late names the controllers that keep a change from going on, as far as that is known.
func (r *Runner) Late() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.acting:
		return nil
	case r.stopped != nil:
		return lateOf(r.stopped)
	case r.left != nil:
		return r.left.Late
	}
	return nil
}
