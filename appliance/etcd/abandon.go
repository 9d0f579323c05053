package etcd

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kthwd/appliance/supervise"
)

// The reasons for which requests are abandoned have a code on which etcd's client does not
// retry (client/v3/retry_interceptor.go:isSafeRetry).
var (
	errNoQuorum = status.Error(codes.FailedPrecondition, "kthwd stops, and etcd has no quorum")
	errFullDisk = status.Error(codes.FailedPrecondition, "kthwd stops, and etcd cannot write: its disk is full")
)

// lockGrace is how long an abandoned request may take to end. One that waits for its context
// or for raft ends at once; one that waits for a lock on the database may never end.
const lockGrace = 500 * time.Millisecond

// requests are the requests that wait for etcd. abandoned is cancelled, for all of them
// at once and with the reason, when the process is stopping and can no longer expect an answer.
type requests struct {
	abandoned context.Context
	fail      context.CancelCauseFunc
}

func newRequests() *requests {
	r := &requests{}
	r.abandoned, r.fail = context.WithCancelCause(context.Background())
	return r
}

// answer is what a request's handler returned.
type answer struct {
	value any
	err   error
}

// intercept is a grpc.UnaryServerInterceptor. It does not wait for an abandoned request whose
// handler ignores its context: after a commit that failed, a read waits forever for a lock
// that the commit holds (storage/backend/read_tx.go:RLock).
func (r *requests) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
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

// stream is what intercept is for lists that etcd answers in parts, a
// grpc.StreamServerInterceptor: the API server's lists (storage/etcd3/store.go:shouldStream),
// and copies of the database. Streams in both directions are watches and leases. They pass,
// because no answer is awaited there, and each watch that fails is tried again at once: see
// awaitLeader.
func (r *requests) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
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
	r   *requests
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

// Abandoned returns a channel that is closed once all requests fail: after Abandon, or in a
// stop on a full disk.
func (e *Member) Abandoned() <-chan struct{} { return e.requests.abandoned.Done() }

// Abandon makes all waiting and later requests to etcd fail if there is no leader and none
// is elected within patience. Otherwise a stop of the API server would wait for those
// requests, and for its own last writes, beyond its budget. Abandon blocks until there is
// a leader, until patience is over, or until ctx ends.
func (e *Member) Abandon(ctx context.Context, patience time.Duration) {
	server := e.Running()
	if server == nil {
		return
	}
	for end := time.Now().Add(patience); time.Now().Before(end); supervise.Sleep(ctx, ReadyPoll) {
		if LeaderOf(server) != 0 || ctx.Err() != nil {
			return
		}
	}
	e.log.Warn("stopping without a quorum: requests that wait for one fail now")
	e.requests.fail(errNoQuorum)
}
