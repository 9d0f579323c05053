package appliance

import (
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
)

// noLeaderPause is how long a watch that fails for want of a leader is kept waiting
// for the answer.
const noLeaderPause = time.Second

// slowNoLeader is a grpc.StreamServerInterceptor around etcd's own. Without a leader
// etcd refuses watches at once, and each of the API server's hundred caches asks again at
// once, for half a minute (client-go/tools/cache/reflector.go, "Retrying watch after
// internal error"; storage/cacher/cacher.go, MaxInternalErrorRetryDuration):
// 8700 watches a second were begun, with two processors and 600 MiB for them. So the
// refusal waits until there is a leader, or for a while.
func (e *etcd) slowNoLeader(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	err := handle(srv, stream)
	if !errors.Is(err, rpctypes.ErrGRPCNoLeader) {
		return err
	}
	pause := time.NewTimer(noLeaderPause)
	defer pause.Stop()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if server := e.running(); server != nil && server.Server.Leader() != 0 {
				return err
			}
		case <-pause.C:
			return err
		case <-stream.Context().Done():
			return err
		}
	}
}
