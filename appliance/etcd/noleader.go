package etcd

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"kthwd/appliance/etcd/view"
	"kthwd/appliance/supervise"
)

// leaderPatience is how long a new watch waits for a leader before etcd refuses it. etcd
// keeps an existing watch as long: three election timeouts.
const leaderPatience = 3 * time.Second

// awaitLeader is a grpc.StreamServerInterceptor that runs before etcd's own, and then abandons
// lists as intercept does: gRPC has one slot before the chain, and etcd has the chain's begin. Without a
// leader, etcd refuses watches at once, and each of the API server's hundred caches
// retries at once, for half a minute (client-go/tools/cache/reflector.go, "Retrying watch
// after internal error"; storage/cacher/cacher.go, MaxInternalErrorRetryDuration). That
// makes 8700 watches a second, which take two processors and 600 MiB. After that the
// caches list again, and so must their clients. A watch that waits out the election of a
// new leader avoids all of this.
func (e *Member) awaitLeader(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if slices.Contains(md[rpctypes.MetadataRequireLeaderKey], rpctypes.MetadataHasLeader) {
		e.leaderWithin(stream.Context(), leaderPatience)
	}
	return e.requests.Stream(srv, stream, info, handle)
}

// leaderWithin blocks until there is a leader, until patience is over, or until ctx ends.
func (e *Member) leaderWithin(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		if server := e.Running(); server != nil && view.LeaderOf(server) != 0 {
			return
		}
		supervise.Sleep(ctx, ReadyPoll)
	}
}
