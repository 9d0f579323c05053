package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// reactions are what signals other than those that stop the process do. None of
// them blocks.
type reactions map[os.Signal]func()

// untilSignal returns a context that ends at the first SIGINT or SIGTERM. The
// second one ends the process at once, with exit code 1: whoever sends it does
// not want to wait for the order in which things stop. Other signals have the
// reactions that are given, called one at a time.
func (a *app) untilSignal(ctx context.Context, log *slog.Logger, other reactions) (_ context.Context, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, append(slices.Collect(maps.Keys(other)), syscall.SIGINT, syscall.SIGTERM)...)
	// A log that nobody reads any more, such as after a restart of journald, must
	// not end the process: Go dies of SIGPIPE on descriptors 1 and 2.
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
				cancel()
			default:
				fmt.Fprintf(a.err, "%skthwd: error: second signal (%s) during the stop: ended at once\n", a.priority(slog.LevelError), s)
				a.exit(1)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel()
	}
}
