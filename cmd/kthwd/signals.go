package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// reactions has a function for each signal that does not stop the process. None of
// them blocks.
type reactions map[os.Signal]func()

// untilSignal returns a context that ends at the first SIGINT or SIGTERM, with the name of
// the signal as its cause. The second
// one ends the process at once, with exit code 1: its sender does not want to wait for
// an orderly stop. For other signals it calls their reactions, one at a time.
func (a *app) untilSignal(ctx context.Context, log *slog.Logger, other reactions) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, append(slices.Collect(maps.Keys(other)), syscall.SIGINT, syscall.SIGTERM)...)
	// A log without a reader, such as after a restart of journald, must not end the
	// process: SIGPIPE on descriptors 1 and 2 ends a Go program.
	signal.Ignore(syscall.SIGPIPE)
	go func() {
		for s := range signals {
			react, known := other[s]
			switch {
			case known:
				react()
			case ctx.Err() == nil:
				log.Info("asked to stop; a second signal ends the process at once", "signal", s.String())
				a.notify.stopping()
				cancel(errors.New(s.String()))
			default:
				fmt.Fprintf(a.Err, "%skthwd: error: second signal (%s) during the stop: ended at once\n", a.Priority(slog.LevelError), s)
				a.exit(1)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel(nil)
	}
}
