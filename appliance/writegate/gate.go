// Package writegate holds back the writes that clients send to an etcd member, for a
// moment, without failing them:
//
//	var g writegate.Gate
//	grpc.ChainUnaryInterceptor(g.Intercept)
//	if g.Close(ctx) {
//		defer g.Open()
//	}
//
// Only a caller whose Close returned true may call Open, once. A write waits as long as
// its own context lasts, so close the gate for less than a client's timeout. Reads and
// watches pass.
package writegate

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// gatedCalls are the calls that etcd writes to its raft log.
var gatedCalls = map[string]bool{
	"/etcdserverpb.KV/Put":            true,
	"/etcdserverpb.KV/DeleteRange":    true,
	"/etcdserverpb.KV/Txn":            true,
	"/etcdserverpb.KV/Compact":        true,
	"/etcdserverpb.Lease/LeaseGrant":  true,
	"/etcdserverpb.Lease/LeaseRevoke": true,
}

// Gate holds the writes that clients send to a member while it is closed. The zero
// value is open. Its methods may be called from any goroutine.
type Gate struct {
	mu     sync.Mutex
	inside int           // writes that have entered and not ended
	shut   chan struct{} // closed when the gate opens; nil while it is open
	empty  chan struct{} // closed when no write is inside; nil unless Close waits for that
}

// Intercept is a grpc.UnaryServerInterceptor.
func (g *Gate) Intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if !gatedCalls[info.FullMethod] {
		return handle(ctx, req)
	}
	if err := g.enter(ctx); err != nil {
		return nil, err
	}
	defer g.exit()
	return handle(ctx, req)
}

// enter blocks until the gate is open, or until ctx ends.
func (g *Gate) enter(ctx context.Context) error {
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

func (g *Gate) exit() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// Close shuts the gate and blocks until all writes inside have ended, or until ctx ends.
// It returns false, and does nothing, if another caller has shut the gate.
func (g *Gate) Close(ctx context.Context) bool {
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

// Open lets all waiting and later writes in. Call it once after a Close that returned true.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut, g.empty = nil, nil
}
