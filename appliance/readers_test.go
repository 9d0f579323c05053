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
		r, reading := newReaders(), make(chan struct{})
		for range 3 {
			r.run(context.Background(), func(ctx context.Context) {
				<-ctx.Done()
				<-reading // the read that is under way
			})
		}
		stopped := make(chan struct{})
		go func() { defer close(stopped); r.stop() }()
		synctest.Wait()
		select {
		case <-stopped:
			t.Error("etcd closes while they read")
		default:
		}
		close(reading)
		<-stopped
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
