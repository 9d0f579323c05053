package appliance

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errAbandoned has a code that etcd's client does not try again for
// (client/v3/retry_interceptor.go:isSafeRetry).
var errAbandoned = status.Error(codes.FailedPrecondition, "kthwd stops, and etcd has no quorum")

// hope ends for all requests at a time, when no quorum is to be expected in this life
// any more. Make one with newHope.
type hope struct {
	ctx  context.Context
	lose context.CancelFunc
}

func newHope() *hope {
	h := &hope{}
	h.ctx, h.lose = context.WithCancel(context.Background())
	return h
}

// intercept is a grpc.UnaryServerInterceptor.
func (h *hope) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if h.ctx.Err() != nil {
		return nil, errAbandoned
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	answer, err := handle(ctx, req)
	if err != nil && h.ctx.Err() != nil {
		return nil, errAbandoned
	}
	return answer, err
}

// Abandon lets every request that waits for etcd fail at once, and those that come
// later, too, when there is no quorum and none is back within patience. Without it
// a stop of the API server would wait for them, and for its own last words, beyond its
// budget. It blocks meanwhile, or until ctx ends.
func (e *etcd) Abandon(ctx context.Context, patience time.Duration) {
	server := e.running()
	if server == nil {
		return
	}
	for end := time.Now().Add(patience); time.Now().Before(end); sleep(ctx, readyPoll) {
		if leaderOf(server) != 0 || ctx.Err() != nil {
			return
		}
	}
	e.log.Warn("stopping without a quorum: requests that wait for one fail now")
	e.hope.lose()
}
