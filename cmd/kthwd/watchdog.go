package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"kthwd/appliance/supervise"
)

// pulse is how a service manager's questions are answered.
type pulse interface {
	Status() []supervise.Status
	// Alive returns nil while the process does its own part, whatever others do.
	Alive(context.Context) error
}

// attend keeps the service manager informed: that a start which makes progress
// wants more time, and afterwards that the process is alive. It returns at once.
func (a *app) attend(ctx context.Context, log *slog.Logger, p pulse) {
	if a.notify == nil {
		return
	}
	go func() {
		keepStarting(ctx, a.notify, p)
		if a.notify.watchdog > 0 {
			w := watchdog{limit: a.notify.watchdog, alive: p.Alive, feed: a.notify.feed, log: log, dump: a.err}
			w.run(context.Background(), ctx)
		}
	}()
}

const (
	startPatience = 5 * time.Minute // what a start may take without a sign of progress: TimeoutStartSec= of the unit
	startLook     = 10 * time.Second
)

// keepStarting asks for more time as long as a start moves on, or waits for
// something outside, such as other controllers: that may take for ever, and a
// restart would not help. It returns once the process is ready, or is to stop.
func keepStarting(ctx context.Context, n *notifier, p pulse) {
	ticker := time.NewTicker(startLook)
	defer ticker.Stop()
	var last []supervise.Status
	for {
		now := p.Status()
		if !slices.Equal(now, last) || waitsOutside(now) {
			n.extend(startPatience)
		}
		last = now
		select {
		case <-n.up:
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// waitsOutside tells whether the first component that holds up the others is held
// up itself by something that is not in this process.
func waitsOutside(all []supervise.Status) bool {
	i := slices.IndexFunc(all, func(s supervise.Status) bool { return !s.Healthy() })
	return i >= 0 && all[i].State == supervise.Waiting
}

// watchdog tells systemd that the process is alive (WatchdogSec=), as long as it
// is. When that was not so for three quarters of the limit, it writes what every
// goroutine does, once, for soon there is nobody to ask.
type watchdog struct {
	limit time.Duration // systemd restarts the process when it hears nothing for so long
	alive func(context.Context) error
	feed  func()
	log   *slog.Logger
	dump  io.Writer
}

var errNoAnswer = errors.New("no answer")

// run returns when life ends. Between the end of serving and that it feeds without
// a question: an orderly stop has budgets of its own and is not its business.
func (w *watchdog) run(life, serving context.Context) {
	every := w.limit / 4
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	fed, dumped := time.Now(), false
	answers := make(chan error, 1)
	asked := false
	for {
		if !asked {
			asked = true
			go func() {
				ask, cancel := context.WithTimeout(life, every)
				defer cancel()
				answers <- w.alive(ask)
			}()
		}
		err := errNoAnswer // of a question that hangs in spite of its deadline
		select {
		case err = <-answers:
			asked = false
			select {
			case <-ticker.C:
			case <-life.Done():
			}
		case <-ticker.C:
		case <-life.Done():
		}
		switch {
		case life.Err() != nil:
			return
		case err == nil || serving.Err() != nil:
			w.feed()
			if dumped {
				w.log.Info("alive again")
			}
			fed, dumped = time.Now(), false
		case time.Since(fed) >= w.limit/4*3-every/2 && !dumped:
			dumped = true
			w.log.Error("not alive, systemd will restart it; what each goroutine does follows", "for", time.Since(fed).Round(time.Second), "err", err)
			writeGoroutines(w.dump)
		case !dumped:
			w.log.Warn("not alive", "for", time.Since(fed).Round(time.Second), "limit", w.limit, "err", err)
		}
	}
}

// writeGoroutines writes the stack of each goroutine, as a crash would.
func writeGoroutines(w io.Writer) {
	const most = 8 << 20
	for size := 1 << 20; ; size *= 2 {
		stacks := make([]byte, size)
		if n := runtime.Stack(stacks, true); n < size || size >= most {
			w.Write(stacks[:n])
			return
		}
	}
}
