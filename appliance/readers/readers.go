// Package readers holds back the end of etcd until the readers of its database in this process have
// ended.
//
//	r := readers.New()
//	member.OnClose(r.Stop)
//	r.Run(ctx, f) // its context ends with ctx, and before etcd closes
package readers

import (
	"context"
	"sync"
	"time"
)

// Group is the goroutines beside the components that read etcd's database in the process. etcd
// itself lets its gRPC requests end before it closes the database, but knows nothing of these: a
// read of a closed one is a nil pointer, which ends the process (server/storage/backend/read_tx.go).
// A stop ends most of them long before; a refused start and a fatal error of etcd do not.
type Group struct {
	closing context.Context
	end     context.CancelFunc
	all     sync.WaitGroup
}

// patience bounds the wait for readers: those of a member without a quorum end with their context.
const patience = 5 * time.Second

// New returns a group without readers.
func New() *Group {
	r := &Group{}
	r.closing, r.end = context.WithCancel(context.Background())
	return r
}

// Run starts f. Its context ends with ctx, and when etcd is about to close.
func (r *Group) Run(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(r.closing, cancel)
	r.all.Go(func() {
		defer cancel()
		defer stop()
		f(ctx)
	})
}

// Stop ends all of them, and returns when they have ended.
func (r *Group) Stop() {
	r.end()
	ended := make(chan struct{})
	go func() { defer close(ended); r.all.Wait() }()
	select {
	case <-ended:
	case <-time.After(patience):
	}
}
