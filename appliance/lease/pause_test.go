package lease

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pause
		p.enter(t.Context(), func(string) { t.Error("enter waited without a pause") })
		term, end := p.paused(t.Context())
		defer end()
		begun := make(chan error, 1)
		go func() { begun <- p.Begin(t.Context(), "while etcd defragments") }()
		synctest.Wait()
		if term.Err() == nil {
			t.Error("the term goes on in a pause")
		}
		select {
		case <-begun:
			t.Error("the pause began before the term had ended")
		default:
		}
		p.exit()
		if err := <-begun; err != nil {
			t.Error(err)
		}

		entered, waits := make(chan struct{}), ""
		go func() {
			p.enter(t.Context(), func(why string) { waits = why })
			close(entered)
		}()
		synctest.Wait()
		select {
		case <-entered:
			t.Error("a term began in a pause")
		default:
		}
		p.End()
		<-entered
		if waits != "while etcd defragments" {
			t.Errorf("enter said that it waits %q", waits)
		}

		// A term that does not end does not hold Begin beyond its context.
		ctx, cancel := context.WithCancel(t.Context())
		go func() { begun <- p.Begin(ctx, "") }()
		synctest.Wait()
		cancel()
		if err := <-begun; !errors.Is(err, context.Canceled) {
			t.Errorf("Begin: got %v", err)
		}
		p.End()
	})
}
