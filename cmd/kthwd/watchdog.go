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

// prober answers the service manager's two questions: does the start make progress, and is the process alive?
type prober interface {
	Status() []supervise.Status
	// Alive returns nil while the process does its own part, whatever others do.
	Alive(context.Context) error
}

// attend keeps the service manager informed: it requests more time for a start that
// makes progress, and then reports that the process is alive. It returns at once.
func (a *app) attend(ctx context.Context, log *slog.Logger, p prober) {
	if a.notify == nil {
		return
	}
	go func() {
		keepStarting(ctx, a.notify, p)
		if a.notify.watchdog > 0 {
			w := watchdog{limit: a.notify.watchdog, alive: p.Alive, feed: a.notify.feed, log: log, dump: a.Err}
			w.run(context.Background(), ctx)
		}
	}()
}

const (
	startPatience = 5 * time.Minute // limit of a start without progress: TimeoutStartSec= of the unit
	startCheck    = 10 * time.Second
)

// working requests more time for a long step before the first component starts.
func (a *app) working() func() {
	if a.notify == nil {
		return nil
	}
	var last time.Time
	return func() {
		if now := time.Now(); now.Sub(last) > startCheck {
			last = now
			a.notify.extend(startPatience)
		}
	}
}

// keepStarting requests more time while a start makes progress, or waits for something
// outside the process, such as other controllers: that may take forever, and a restart
// would not help. It returns once the process is ready or begins to stop.
func keepStarting(ctx context.Context, n *notifier, p prober) {
	ticker := time.NewTicker(startCheck)
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

// waitsOutside reports whether the first component that is not healthy, for which the
// others wait, waits itself for something outside the process.
func waitsOutside(all []supervise.Status) bool {
	i := slices.IndexFunc(all, func(s supervise.Status) bool { return !s.Healthy() })
	return i >= 0 && all[i].State == supervise.Waiting
}

// watchdog tells systemd that the process is alive (WatchdogSec=), while it is. After
// three quarters of the limit without a sign of life it writes the stack of every
// goroutine, once, because systemd will soon end the process.
type watchdog struct {
	limit time.Duration // systemd restarts the process after this time without a report
	alive func(context.Context) error
	feed  func()
	log   *slog.Logger
	dump  io.Writer
}

var errNoAnswer = errors.New("no answer")

// run returns when life ends. After the end of serving it feeds without a check: the
// orderly stop has budgets of its own.
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
		err := errNoAnswer // if the check hangs in spite of its deadline
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
			w.log.Error("not alive, systemd will restart kthwd; the stack of each goroutine follows", "for", time.Since(fed).Round(time.Second), "err", err)
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
