package readers

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
		r, reading := New(), make(chan struct{})
		for range 3 {
			r.Run(context.Background(), func(ctx context.Context) {
				<-ctx.Done()
				<-reading // the read that is under way
			})
		}
		stopped := make(chan struct{})
		go func() { defer close(stopped); r.Stop() }()
		synctest.Wait()
		select {
		case <-stopped:
			t.Error("etcd closes while they read")
		default:
		}
		close(reading)
		<-stopped
		left, leave := context.WithCancel(context.Background())
		r = New()
		r.Run(left, func(ctx context.Context) { <-ctx.Done() })
		leave()
		r.Stop() // it ended by itself
		stuck := make(chan struct{})
		r = New()
		r.Run(context.Background(), func(context.Context) { <-stuck })
		begun := time.Now()
		r.Stop()
		if took := time.Since(begun); took != patience {
			t.Errorf("a reader that does not end delays the stop by %v", took)
		}
		close(stuck)
	})
}
