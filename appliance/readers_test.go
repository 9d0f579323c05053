package appliance

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Every reader has ended before etcd closes, whichever context it was given; one that does not end
// delays a stop by no more than its patience.
func TestReadersEndBeforeEtcd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReaders()
		reading := 0
		for range 3 {
			reading++
			r.run(context.Background(), func(ctx context.Context) {
				<-ctx.Done()
				time.Sleep(time.Second) // the read that is under way
				reading--
			})
			synctest.Wait()
		}
		r.stop()
		if reading != 0 {
			t.Errorf("%d read on", reading)
		}
		left, leave := context.WithCancel(context.Background())
		r = newReaders()
		r.run(left, func(ctx context.Context) { <-ctx.Done() })
		leave()
		r.stop() // it ended by itself
		stuck := make(chan struct{})
		r = newReaders()
		r.run(context.Background(), func(context.Context) { <-stuck })
		begun := time.Now()
		r.stop()
		if took := time.Since(begun); took != readersPatience {
			t.Errorf("a reader that does not end delays the stop by %v", took)
		}
		close(stuck)
	})
}
