package requests

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAbandonedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		boom := errors.New("boom")
		call := func(handle func(context.Context) (any, error)) (any, error) {
			return r.Intercept(t.Context(), nil, nil, func(ctx context.Context, _ any) (any, error) { return handle(ctx) })
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
		r.Fail(ErrNoQuorum)
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

// parts is the server's end of a stream that counts what is sent.
type parts struct {
	grpc.ServerStream
	ctx  context.Context
	sent int
}

func (p *parts) Context() context.Context { return p.ctx }
func (p *parts) SendMsg(any) error        { p.sent++; return nil }

// Lists that are answered in parts are abandoned as all other requests; watches go on.
func TestAbandonedStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New()
		boom := errors.New("boom")
		list, watch := &grpc.StreamServerInfo{FullMethod: "/etcdserverpb.KV/RangeStream", IsServerStream: true}, &grpc.StreamServerInfo{IsServerStream: true, IsClientStream: true}
		call := func(info *grpc.StreamServerInfo, handle func(grpc.ServerStream) error) (sent int, err error) {
			p := &parts{ctx: t.Context()}
			err = r.Stream(nil, p, info, func(_ any, s grpc.ServerStream) error { return handle(s) })
			return p.sent, err
		}
		if sent, err := call(list, func(s grpc.ServerStream) error { return s.SendMsg(nil) }); sent != 1 || err != nil {
			t.Errorf("got %d parts, %v; want one", sent, err)
		}
		if _, err := call(list, func(grpc.ServerStream) error { return boom }); !errors.Is(err, boom) {
			t.Errorf("got %v, want the handler's error", err)
		}
		ended := map[string]chan error{"one that waits": make(chan error, 1), "one whose last part was sent": make(chan error, 1), "one that waits for a lock": make(chan error, 1), "a watch": make(chan error, 1)}
		unlock, stop := make(chan struct{}), make(chan struct{})
		late := make(chan error, 1) // what a handler gets that sends after its end
		begin := func(name string, info *grpc.StreamServerInfo, handle func(grpc.ServerStream) error) {
			go func() { _, err := call(info, handle); ended[name] <- err }()
		}
		begin("one that waits", list, func(s grpc.ServerStream) error { <-s.Context().Done(); return s.Context().Err() })
		begin("one whose last part was sent", list, func(s grpc.ServerStream) error { <-s.Context().Done(); return nil })
		begin("one that waits for a lock", list, func(s grpc.ServerStream) error { <-unlock; late <- s.SendMsg(nil); return nil })
		begin("a watch", watch, func(s grpc.ServerStream) error {
			select {
			case <-s.Context().Done():
			case <-stop:
			}
			return s.SendMsg(nil)
		})
		synctest.Wait()
		r.Fail(ErrNoQuorum)
		time.Sleep(lockGrace)
		synctest.Wait()
		for name, want := range map[string]codes.Code{"one that waits": codes.FailedPrecondition, "one whose last part was sent": codes.OK, "one that waits for a lock": codes.FailedPrecondition} {
			select {
			case err := <-ended[name]:
				if status.Code(err) != want {
					t.Errorf("%s: got %v, want %v", name, err, want)
				}
			default:
				t.Errorf("%s: got no answer, want %v", name, want)
			}
		}
		close(unlock)
		if err := <-late; status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a part after the end: got %v, want FailedPrecondition", err)
		}
		if len(ended["a watch"]) != 0 {
			t.Errorf("the watch has ended: %v", <-ended["a watch"])
		}
		close(stop)
		if err := <-ended["a watch"]; err != nil {
			t.Errorf("a watch: got %v", err)
		}
		if _, err := call(list, func(grpc.ServerStream) error { t.Error("a later one is handled"); return nil }); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a later one: got %v, want FailedPrecondition", err)
		}
	})
}
