package appliance

import (
	"context"
	"sync"
	"time"
)

// readers are the goroutines beside the components that read etcd's database in the process. etcd
// itself lets its gRPC requests end before it closes the database, but knows nothing of these: a
// read of a closed one is a nil pointer, which ends the process (server/storage/backend/read_tx.go).
// A stop ends most of them long before; a refused start and a fatal error of etcd do not.
type readers struct {
	closing context.Context
	end     context.CancelFunc
	all     sync.WaitGroup
}

// readersPatience bounds the wait for readers: those of a member without a quorum end with their context.
const readersPatience = 5 * time.Second

func newReaders() *readers {
	r := &readers{}
	r.closing, r.end = context.WithCancel(context.Background())
	return r
}

// run starts f. Its context ends with ctx, and when etcd is about to close.
func (r *readers) run(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(r.closing, cancel)
	r.all.Go(func() {
		defer cancel()
		defer stop()
		f(ctx)
	})
}

// stop ends all of them, and returns when they have ended.
func (r *readers) stop() {
	r.end()
	ended := make(chan struct{})
	go func() { defer close(ended); r.all.Wait() }()
	select {
	case <-ended:
	case <-time.After(readersPatience):
	}
}
