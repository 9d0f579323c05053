package etcd

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// gatedCalls are those that etcd puts into its log.
var gatedCalls = map[string]bool{
	"/etcdserverpb.KV/Put":            true,
	"/etcdserverpb.KV/DeleteRange":    true,
	"/etcdserverpb.KV/Txn":            true,
	"/etcdserverpb.KV/Compact":        true,
	"/etcdserverpb.Lease/LeaseGrant":  true,
	"/etcdserverpb.Lease/LeaseRevoke": true,
}

// writeGate holds the writes that clients send to a member while it is closed. The
// zero value is an open one.
type writeGate struct {
	mu     sync.Mutex
	inside int
	shut   chan struct{} // closed when the gate opens; nil while it is open
	empty  chan struct{} // closed when nobody is inside; nil unless somebody waits for that
}

// intercept is a grpc.UnaryServerInterceptor.
func (g *writeGate) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if !gatedCalls[info.FullMethod] {
		return handle(ctx, req)
	}
	if err := g.enter(ctx); err != nil {
		return nil, err
	}
	defer g.exit()
	return handle(ctx, req)
}

// enter waits for an open gate, or for the end of ctx.
func (g *writeGate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		shut := g.shut
		if shut == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		select {
		case <-shut:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *writeGate) exit() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close shuts the gate and waits until those inside are out, or for the end of ctx.
// Whoever calls it opens the gate later. It is false when the gate was shut
// already: then that is somebody else's.
func (g *writeGate) close(ctx context.Context) bool {
	g.mu.Lock()
	if g.shut != nil {
		g.mu.Unlock()
		return false
	}
	g.shut = make(chan struct{})
	var empty chan struct{}
	if g.inside > 0 {
		empty = make(chan struct{})
		g.empty = empty
	}
	g.mu.Unlock()
	if empty != nil {
		select {
		case <-empty:
		case <-ctx.Done():
		}
	}
	return true
}

// open lets everybody in.
func (g *writeGate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut, g.empty = nil, nil
}
