// Package requests fails all requests that wait for etcd at once, when the process stops and none can
// expect an answer any longer: without a quorum, or on a full disk.
package requests

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The reasons for which requests are abandoned have a code on which etcd's client does not
// retry (client/v3/retry_interceptor.go:isSafeRetry).
var (
	ErrNoQuorum = status.Error(codes.FailedPrecondition, "kthwd stops, and etcd has no quorum")
	ErrFullDisk = status.Error(codes.FailedPrecondition, "kthwd stops, and etcd cannot write: its disk is full")
)

// lockGrace is how long an abandoned request may take to end. One that waits for its context
// or for raft ends at once; one that waits for a lock on the database may never end.
const lockGrace = 500 * time.Millisecond

// Requests are those that wait for etcd. abandoned is cancelled, for all of them
// at once and with the reason, when the process is stopping and can no longer expect an answer.
type Requests struct {
	abandoned context.Context
	cancel    context.CancelCauseFunc
}

// New returns requests of which none is abandoned.
func New() *Requests {
	r := &Requests{}
	r.abandoned, r.cancel = context.WithCancelCause(context.Background())
	return r
}

// Fail makes all that wait and all later ones fail with why, which has one of the errors here.
func (r *Requests) Fail(why error) { r.cancel(why) }

// Failed is closed once all fail.
func (r *Requests) Failed() <-chan struct{} { return r.abandoned.Done() }

// answer is what a request's handler returned.
type answer struct {
	value any
	err   error
}

// Intercept is a grpc.UnaryServerInterceptor. It does not wait for an abandoned request whose
// handler ignores its context: after a commit that failed, a read waits forever for a lock
// that the commit holds (storage/backend/read_tx.go:RLock).
func (r *Requests) Intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if r.abandoned.Err() != nil {
		return nil, context.Cause(r.abandoned)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	handled := make(chan answer, 1)
	go func() {
		value, err := handle(ctx, req)
		handled <- answer{value, err}
	}()
	select {
	case a := <-handled:
		return a.value, a.err
	case <-r.abandoned.Done():
		cancel()
	}
	select {
	case a := <-handled:
		if a.err == nil {
			return a.value, nil
		}
	case <-time.After(lockGrace):
	}
	return nil, context.Cause(r.abandoned)
}

// Stream is what Intercept is for lists that etcd answers in parts, a
// grpc.StreamServerInterceptor: the API server's lists (storage/etcd3/store.go:shouldStream),
// and copies of the database. Streams in both directions are watches and leases. They pass,
// because no answer is awaited there, and each watch that fails is tried again at once: the member lets a
// watch wait for a leader.
func (r *Requests) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if info.IsClientStream {
		return handle(srv, stream)
	}
	if r.abandoned.Err() != nil {
		return context.Cause(r.abandoned)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	handled := make(chan error, 1)
	go func() { handled <- handle(srv, &abandonable{stream, ctx, r}) }()
	select {
	case err := <-handled:
		return err
	case <-r.abandoned.Done():
		cancel()
	}
	select {
	case err := <-handled:
		if err == nil {
			return nil
		}
	case <-time.After(lockGrace):
	}
	return context.Cause(r.abandoned)
}

// abandonable is a stream with a context that ends when the requests are abandoned. A handler
// that goes on after that sends nothing: gRPC's stream may be gone.
type abandonable struct {
	grpc.ServerStream
	ctx context.Context
	r   *Requests
}

// Context implements grpc.ServerStream.
func (s *abandonable) Context() context.Context { return s.ctx }

// SendMsg implements grpc.ServerStream.
func (s *abandonable) SendMsg(m any) error {
	if s.r.abandoned.Err() != nil {
		return context.Cause(s.r.abandoned)
	}
	return s.ServerStream.SendMsg(m)
}
