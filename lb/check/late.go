package check

import (
	"sync"
	"sync/atomic"
	"time"
)

// late waits for answers to checks that have timed out. One changes no verdict: a backend that
// is so slow gets no new connections. But it proves that the backend lives, as data on a
// client's connection do.
type late struct {
	patience time.Duration // after the end of the check
	quit     chan struct{} // closed by end
	waiting  sync.WaitGroup
	last     atomic.Int64 // when the last came; nanoseconds since anyMoment, 0 for never
}

func newLate(patience time.Duration) *late {
	if patience == 0 {
		return nil
	}
	return &late{patience: patience, quit: make(chan struct{})}
}

// wait takes a line over, and ends it after its answer or the patience.
func (w *late) wait(l *line) {
	w.waiting.Go(func() {
		defer l.close()
		over := time.NewTimer(w.patience)
		defer over.Stop()
		select {
		case got := <-l.answers:
			if got.err == nil {
				w.last.Store(max(1, int64(time.Since(anyMoment))))
			}
		case <-l.done:
		case <-over.C:
		case <-w.quit:
		}
	})
}

// end ends all lines and waits for their goroutines.
func (w *late) end() {
	if w != nil {
		close(w.quit)
		w.waiting.Wait()
	}
}

// LateAnswer returns when the last answer came to a check that had timed out; zero for never.
func (c *Checker) LateAnswer() time.Time {
	if c.kept.late == nil {
		return time.Time{}
	}
	at := c.kept.late.last.Load()
	if at == 0 {
		return time.Time{}
	}
	return anyMoment.Add(time.Duration(at))
}
