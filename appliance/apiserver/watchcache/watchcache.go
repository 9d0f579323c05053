// Package watchcache shortens the time for which consistent reads wait for the watch cache.
//
// A list without a resourceVersion is served from the watch cache once the cache has reached etcd's
// revision. Where nobody writes to the resource, only etcd's progress notification says so, and
// upstream asks for one on a tick of 100 ms
// (k8s.io/apiserver/pkg/storage/cacher/progress/watch_progress.go). So a client that lists one
// resource again and again waits for almost 100 ms each time. With Prompt the notification is asked
// for as soon as a reader has learned the revision that it needs: the wait is one round trip to etcd.
//
// Consistency is the same: the cache answers when it has reached the revision, not before. Upstream's
// tick goes on beside it, for a notification that is lost or comes from a member that lags.
package watchcache

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/metadata"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"

	"kthwd/appliance/apiserver/etcdclients"
)

const (
	// gap is the least time between two requests for one resource, which bounds their cost: a
	// request that comes earlier waits, and serves all readers that have come meanwhile.
	gap = 5 * time.Millisecond

	requestTimeout = time.Second // for a watch that is being opened again
)

// Prompt returns getter with a watch cache that asks for progress at once, on connections to etcd that
// all resources share. A getter that is not upstream's is left alone.
func Prompt(getter generic.RESTOptionsGetter) generic.RESTOptionsGetter {
	if upstream, ok := getter.(*options.StorageFactoryRestOptionsFactory); ok {
		return prompt{upstream}
	}
	return getter
}

type prompt struct {
	*options.StorageFactoryRestOptionsFactory
}

func (p prompt) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	o, err := p.StorageFactoryRestOptionsFactory.GetRESTOptions(resource, example)
	if err != nil {
		return o, err
	}
	o.Decorator = etcdclients.Undecorated
	if !p.Options.EnableWatchCache {
		return o, nil
	}
	sizes, err := options.ParseWatchCacheSizes(p.Options.WatchCacheSizes)
	if size, given := sizes[resource]; given && size <= 0 {
		return o, err
	}
	o.Decorator = cached
	return o, err
}

// cached is upstream's storage with a cache
// (k8s.io/apiserver/pkg/registry/generic/registry/storage_factory.go), which makes the storage
// inside itself and takes none.
func cached(
	config *storagebackend.ConfigForResource, prefix string, key func(runtime.Object) (string, error),
	object, list func() runtime.Object, attributes storage.AttrFunc, indexed storage.IndexerFuncs, indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	raw, destroy, err := etcdclients.Storage(config, object, list, prefix)
	if err != nil {
		return raw, destroy, err
	}
	c, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage: &prompted{Interface: raw}, Versioner: storage.APIObjectVersioner{}, Codec: config.Codec,
		GroupResource: config.GroupResource, EventsHistoryWindow: config.EventsHistoryWindow,
		ResourcePrefix: prefix, KeyFunc: key, NewFunc: object, NewListFunc: list,
		GetAttrsFunc: attributes, IndexerFuncs: indexed, Indexers: indexers,
	})
	if err != nil {
		destroy()
		return nil, func() {}, err
	}
	delegator := cacher.NewCacheDelegator(c, raw)
	return delegator, sync.OnceFunc(func() {
		delegator.Stop()
		c.Stop()
		destroy()
	}), nil
}

// prompted is the storage that a cache reads and watches.
type prompted struct {
	storage.Interface

	mu     sync.Mutex
	stream metadata.MD // of the cache's watch: etcd's client finds its stream by it
	due    bool        // a reader needs a request that has not been sent yet
	asking bool        // ask's goroutine runs
	sent   time.Time
}

// Watch remembers which stream the cache's watch is on: progress is asked for there.
func (p *prompted) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	md, _ := metadata.FromOutgoingContext(ctx)
	p.mu.Lock()
	p.stream = md
	p.mu.Unlock()
	return p.Interface.Watch(ctx, key, opts)
}

// GetCurrentResourceVersion is what a consistent read begins with.
func (p *prompted) GetCurrentResourceVersion(ctx context.Context) (uint64, error) {
	revision, err := p.Interface.GetCurrentResourceVersion(ctx)
	if err == nil {
		p.ask()
	}
	return revision, err
}

// ask asks for progress now, or when gap has passed since the last request. One goroutine does so:
// where the cache's watch hangs, a request hangs with it.
func (p *prompted) ask() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due = true
	if !p.asking {
		p.asking = true
		go p.send()
	}
}

func (p *prompted) send() {
	for p.more() {
		time.Sleep(gap - time.Since(p.sent))
		p.request()
	}
}

func (p *prompted) more() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asking = p.due
	return p.due
}

func (p *prompted) request() {
	p.mu.Lock()
	p.due, p.sent = false, time.Now() // a reader that comes from now on may need a later revision
	ctx := metadata.NewOutgoingContext(context.Background(), p.stream)
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_ = p.Interface.RequestWatchProgress(ctx) // upstream's tick asks again
}
