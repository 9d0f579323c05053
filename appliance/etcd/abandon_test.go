package etcd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAbandonedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRequests()
		boom := errors.New("boom")
		call := func(handle func(context.Context) (any, error)) (any, error) {
			return r.intercept(t.Context(), nil, nil, func(ctx context.Context, _ any) (any, error) { return handle(ctx) })
		}
		if got, err := call(func(context.Context) (any, error) { return 7, nil }); got != 7 || err != nil {
			t.Errorf("got %v %v, want the handler's answer", got, err)
		}
		if _, err := call(func(context.Context) (any, error) { return nil, boom }); !errors.Is(err, boom) {
			t.Errorf("got %v, want the handler's error", err)
		}
		waits, late := make(chan error, 1), make(chan any, 1)
		go func() {
			_, err := call(func(ctx context.Context) (any, error) { <-ctx.Done(); return nil, ctx.Err() })
			waits <- err
		}()
		go func() {
			got, _ := call(func(ctx context.Context) (any, error) { <-ctx.Done(); return "done", nil })
			late <- got
		}()
		locked, unlock := make(chan error, 1), make(chan struct{})
		defer close(unlock)
		go func() {
			_, err := call(func(context.Context) (any, error) { <-unlock; return nil, nil })
			locked <- err
		}()
		synctest.Wait()
		r.fail(errNoQuorum)
		synctest.Wait()
		if err := <-waits; status.Code(err) != codes.FailedPrecondition {
			t.Errorf("one that waits: got %v, want FailedPrecondition", err)
		}
		if got := <-late; got != "done" {
			t.Errorf("one that was done all the same: got %v, want its answer", got)
		}
		time.Sleep(lockGrace)
		synctest.Wait()
		select {
		case err := <-locked:
			if status.Code(err) != codes.FailedPrecondition {
				t.Errorf("one that waits for a lock: got %v, want FailedPrecondition", err)
			}
		default:
			t.Error("one that waits for a lock: got no answer, want FailedPrecondition")
		}
		_, err := call(func(context.Context) (any, error) { t.Error("a later one is handled"); return nil, nil })
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a later one: got %v, want FailedPrecondition", err)
		}
	})
}
