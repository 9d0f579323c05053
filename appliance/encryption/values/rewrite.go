package values

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"k8s.io/apiserver/pkg/storage/value"

	"kthwd/appliance/encryption/keyfile"
)

// One transaction of a rewrite. etcd accepts 128 operations and 1.5 MiB. Each holds up the writes
// of others for as long as it has values, so they are small, and several are under way at once,
// because etcd writes them with one fsync.
const (
	batchValues = 10
	batchBytes  = 512 << 10
	underWay    = 4

	// mostASecond bounds the values of a second: each is an event for every watcher. In make
	// bench-encryption on two cores the p99 of other requests was 2.7 times the quiet one at 2900 a
	// second in transactions of 100, and 1.8 times with the values here, which gave 1150 a second.
	mostASecond = 1300
)

// Rewriter writes values of one key anew with another.
type Rewriter struct {
	Reader Reader
	Client *clientv3.Client
	Due    func(key string, data []byte) bool // whether a value needs the new key
	Done   func(n int)                        // called after each transaction, from one goroutine at a time
	Held   []clientv3.Cmp                     // what else must be so for each write: the right to act

	batch  []change
	bytes  int
	writes *errgroup.Group
	pace   *rate.Limiter
	mu     sync.Mutex
}

// change is a value to be replaced.
type change struct {
	key      string
	revision int64
	data     []byte
}

// Run looks at all values once, and rewrites those that are due. A value that changes
// meanwhile is left to its writer, who uses the new key already; the next run finds what is
// left.
func (w *Rewriter) Run(ctx context.Context) error {
	w.batch, w.bytes = nil, 0
	w.writes, ctx = errgroup.WithContext(ctx)
	w.writes.SetLimit(underWay)
	w.pace = rate.NewLimiter(mostASecond, batchValues)
	err := w.walk(ctx)
	// What a write has failed with says more than the walk that it has ended.
	if failed := w.writes.Wait(); failed != nil {
		return failed
	}
	return err
}

func (w *Rewriter) walk(ctx context.Context) error {
	err := Walk(ctx, w.Client, w.Reader.Root, func(kv *mvccpb.KeyValue) error {
		key := string(kv.Key)
		if !w.Due(key, kv.Value) {
			return nil
		}
		plain, by, err := w.Reader.Open(ctx, key, kv.Value)
		if err != nil {
			return fmt.Errorf("%s: %w", w.Reader.ObjectOf(key), err)
		}
		data, err := by.TransformToStorage(ctx, plain, value.DefaultContext(key))
		if err != nil {
			return fmt.Errorf("encrypt %s: %w", w.Reader.ObjectOf(key), err)
		}
		w.batch, w.bytes = append(w.batch, change{key, kv.ModRevision, data}), w.bytes+len(data)
		if len(w.batch) >= batchValues || w.bytes >= batchBytes {
			return w.flush(ctx)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.flush(ctx)
}

// flush begins to write the batch: all of it, or what has not changed, one by one.
func (w *Rewriter) flush(ctx context.Context) error {
	batch := w.batch
	w.batch, w.bytes = nil, 0
	if len(batch) == 0 {
		return ctx.Err()
	}
	w.writes.Go(func() error {
		done, err := w.write(ctx, batch...)
		if done || err != nil {
			w.count(len(batch), err)
			return err
		}
		for _, c := range batch {
			if done, err = w.write(ctx, c); err != nil {
				return err
			} else if done {
				w.count(1, nil)
			}
		}
		return nil
	})
	return w.pace.WaitN(ctx, len(batch))
}

func (w *Rewriter) count(n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.Done(n)
	}
}

// write replaces values that are as they were read. A value keeps its lease.
func (w *Rewriter) write(ctx context.Context, all ...change) (done bool, err error) {
	same := slices.Clone(w.Held)
	var puts []clientv3.Op
	for _, c := range all {
		same = append(same, clientv3.Compare(clientv3.ModRevision(c.key), "=", c.revision))
		puts = append(puts, clientv3.OpPut(c.key, string(c.data), clientv3.WithIgnoreLease()))
	}
	answer, err := w.Client.Txn(ctx).If(same...).Then(puts...).Commit()
	if err != nil {
		return false, &NoAnswer{"write to etcd", err}
	}
	return answer.Succeeded, nil
}

// DueForward chooses what has another key than the new one, and what has none although the file
// encrypts its resource.
func DueForward(r Reader, to keyfile.Provider) func(key string, data []byte) bool {
	return func(key string, data []byte) bool {
		if prefix, encrypted := splitStored(data); encrypted {
			return prefix != to.Prefix() && len(r.of(key)) > 0
		}
		_, encrypts := r.plainBy(key, data)
		return encrypts
	}
}

// DueBack chooses what has the new key.
func DueBack(to keyfile.Provider) func(key string, data []byte) bool {
	return func(_ string, data []byte) bool {
		prefix, encrypted := splitStored(data)
		return encrypted && prefix == to.Prefix()
	}
}
