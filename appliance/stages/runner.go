package stages

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"kthwd/appliance/supervise"
)

// RunnerConfig describes a Runner.
type RunnerConfig struct {
	Kind   Kind
	Name   string                           // this controller's
	Client func() (*clientv3.Client, error) // of the member here; the Runner closes it
	Log    *slog.Logger                     // nil for none
}

// Runner carries a change on in the background, one at a time. Make one with NewRunner. Its methods
// may be called from any goroutine.
type Runner struct {
	cfg RunnerConfig

	mu      sync.Mutex
	life    context.Context         // of Live; nil before
	acting  bool                    // this controller carries the change on
	halt    context.CancelCauseFunc // stops it; nil while it does not
	over    chan struct{}           // closed when it has stopped
	stopped error                   // why it does not go on
	left    *Stop                   // the same, as Follow has found it in etcd
}

// NewRunner makes a Runner. It does nothing before Live.
func NewRunner(c RunnerConfig) *Runner {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{cfg: c}
}

// Live lets changes be carried on until ctx ends.
func (r *Runner) Live(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life = ctx
}

// followEvery is the pause between two looks of Run.
const followEvery = 5 * time.Second

// Run is Live, and calls look every 5 s, with a client of the member here once that has started,
// until ctx ends: changes of other controllers are followed so.
func (r *Runner) Run(ctx context.Context, look func(context.Context, *clientv3.Client) error) {
	r.Live(ctx)
	for ctx.Err() == nil {
		if client, err := r.cfg.Client(); err == nil {
			if err := look(ctx, client); err != nil {
				r.cfg.Log.Debug("the rotation of "+r.cfg.Kind.What+" is not known", "err", err)
			}
			client.Close()
		}
		supervise.Sleep(ctx, followEvery)
	}
}

// Work is what remains to be done of a change.
type Work struct {
	What  string // for the log
	Stage func(context.Context, *clientv3.Client, *Hold) error
}

// Act acquires the right to act, calls begin, and carries its Work on in the background, also after
// ctx has ended. An error of begin, or of the right to act, is returned.
func (r *Runner) Act(ctx context.Context, begin func(context.Context, *clientv3.Client, *Hold) (Work, error)) error {
	r.mu.Lock()
	life := r.life
	busy := r.acting
	r.acting = life != nil
	r.mu.Unlock()
	switch {
	case life == nil:
		return errors.New("kthwd has not started yet, or stops")
	case busy:
		return &errHeld{r.cfg.Kind, r.cfg.Name}
	}
	client, err := r.cfg.Client()
	if err != nil {
		r.idle()
		return err
	}
	h, err := r.cfg.Kind.Take(ctx, client, r.cfg.Name)
	if err != nil {
		r.idle()
		client.Close()
		return err
	}
	work, err := begin(ctx, client, h)
	if err != nil {
		r.idle()
		h.Release()
		client.Close()
		return err
	}
	r.start(life, client, h, work)
	return nil
}

func (r *Runner) idle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acting = false
}

// start does the work until it is done, life ends, it is halted, or the right to act is lost.
func (r *Runner) start(life context.Context, client *clientv3.Client, h *Hold, work Work) {
	ctx, cancel := context.WithCancelCause(life)
	over := make(chan struct{})
	r.mu.Lock()
	r.stopped, r.left, r.halt, r.over = nil, nil, cancel, over
	r.mu.Unlock()
	if err := h.goesOn(ctx, client); err != nil {
		r.cfg.Log.Debug("why the rotation had stopped stays in etcd", "err", err)
	}
	go func() {
		select {
		case <-h.session.Done():
			cancel(r.cfg.Kind.Lost())
		case <-ctx.Done():
		}
	}()
	go func() {
		defer close(over)
		err := work.Stage(ctx, client, h)
		if cause := context.Cause(ctx); cause != nil && err != nil {
			err = cause
		} else if err != nil {
			if err := h.leave(life, client, stopOf(err, r.cfg.Name)); err != nil {
				r.cfg.Log.Debug("the other controllers do not know why the rotation has stopped", "err", err)
			}
		}
		cancel(nil)
		h.Release()
		client.Close()
		r.end(work, err)
	}()
}

// errHalted means that a person has asked to abort.
var errHalted = errors.New("it is aborted")

// Halt ends the work here, if there is any, and returns when it has ended.
func (r *Runner) Halt(ctx context.Context) error {
	r.mu.Lock()
	halt, over := r.halt, r.over
	r.mu.Unlock()
	if halt == nil {
		return nil
	}
	halt(errHalted)
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end notes how the work has ended.
func (r *Runner) end(work Work, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acting, r.halt, r.stopped = false, nil, err
	if err != nil && r.life.Err() == nil && !errors.Is(err, errHalted) {
		r.cfg.Log.Warn("the rotation of "+r.cfg.Kind.What+" has stopped", "rotation", work.What, "err", err)
	}
}

// Stopped is why the last work here does not go on; nil while it does, and after its end.
func (r *Runner) Stopped() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.acting {
		return nil
	}
	return r.stopped
}

// Acting reports whether this controller carries the change on.
func (r *Runner) Acting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acting
}

// Idle calls f unless this controller acts, and lets it begin only afterwards. f must not call the
// Runner.
func (r *Runner) Idle(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.acting {
		f()
	}
}
