package writegate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
)

func TestWriteGate(t *testing.T) {
	const put, get = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		call := func(ctx context.Context, method string, takes time.Duration) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := g.Intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) {
					time.Sleep(takes)
					return nil, nil
				})
				done <- err
			}()
			synctest.Wait()
			return done
		}
		under := call(t.Context(), put, 100*time.Millisecond)
		begun := time.Now()
		if !g.Close(t.Context()) {
			t.Error("the gate was shut already")
		}
		if got := time.Since(begun); got != 100*time.Millisecond {
			t.Errorf("waited %v for the write that was under way, want 100ms", got)
		}
		<-under
		if g.Close(t.Context()) {
			t.Error("a gate that is shut was shut again")
		}
		held := call(t.Context(), put, 0)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		tired := call(ctx, put, 0)
		if err := <-call(t.Context(), get, 0); err != nil {
			t.Error(err)
		}
		if err := <-tired; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a client that waits a second: got %v", err)
		}
		select {
		case <-held:
			t.Error("a write went through a shut gate")
		default:
		}
		g.Open()
		if err := <-held; err != nil {
			t.Error(err)
		}
		slow := call(t.Context(), put, time.Hour)
		short, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		begun = time.Now()
		if !g.Close(short) || time.Since(begun) != time.Second {
			t.Errorf("waited %v for a write that hangs, want 1s", time.Since(begun))
		}
		g.Open()
		<-slow
	})
}
