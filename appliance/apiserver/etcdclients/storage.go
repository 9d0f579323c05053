// Package etcdclients gives all resources of an API server the same two connections to etcd.
//
// Upstream opens a connection for each resource, custom ones as well, with some seven goroutines
// and its buffers at both ends (k8s.io/apiserver/pkg/storage/storagebackend/factory/etcd3.go;
// https://github.com/kubernetes/kubernetes/issues/111476). Here a resource has a client of its own,
// with its own watch streams and leases, on connections that are shared: one for reads and writes,
// one for watches, so that no event waits behind a long list
// (https://github.com/etcd-io/etcd/issues/15402).
package etcdclients

import (
	"context"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	feature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/tools/cache"
)

// Undecorated is generic.UndecoratedStorage on shared connections.
func Undecorated(
	config *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error),
	object, list func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs, _ *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	return Storage(config, object, list, prefix)
}

var _ generic.StorageDecorator = Undecorated

// Storage is generic.NewRawStorage on shared connections: the storage is upstream's, and the caller
// destroys it. It waits up to 20 seconds for etcd. An etcd behind an egress proxy, or a storage of
// another type, is left to upstream.
func Storage(config *storagebackend.ConfigForResource, object, list func() runtime.Object, prefix string) (storage.Interface, factory.DestroyFunc, error) {
	if config.Transport.EgressLookup != nil || config.Type != storagebackend.StorageTypeUnset && config.Type != storagebackend.StorageTypeETCD3 {
		return generic.NewRawStorage(config, object, list, prefix)
	}
	shared, err := acquire(config.Transport, config.CompactionInterval)
	if err != nil {
		return nil, nil, err
	}
	client := shared.client()
	s, err := shared.store(client, config, object, list, prefix)
	if err != nil {
		_ = client.Close()
		shared.release()
		return nil, nil, err
	}
	return s, sync.OnceFunc(func() { // upstream destroys a storage once for each subresource
		s.close()
		_ = client.Close()
		shared.release()
	}), nil
}

// client returns the client of one resource. To close it ends its watches and leases, and neither
// connection.
func (c *connections) client() *kubernetes.Client {
	client := clientv3.NewCtxClient(context.Background(), clientv3.WithZapLogger(c.requests.GetLogger()))
	client.KV = etcd3.NewETCDLatencyTracker(c.requests.KV)
	client.Lease = clientv3.NewLease(c.requests)
	client.Watcher = clientv3.NewWatcher(c.watches)
	k := &kubernetes.Client{Client: client}
	k.Kubernetes = k
	return k
}

type store struct {
	storage.Interface
	close func()
}

// store makes upstream's storage as factory/etcd3.go does, which makes a connection for it and takes none.
func (c *connections) store(client *kubernetes.Client, config *storagebackend.ConfigForResource, object, list func() runtime.Object, prefix string) (store, error) {
	transformer := config.Transformer
	if transformer == nil {
		transformer = identity.NewEncryptCheckTransformer()
	}
	versioner := storage.APIObjectVersioner{}
	decoder := etcd3.NewDefaultDecoder(config.Codec, versioner)
	deletesUnreadable := feature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion)
	if deletesUnreadable {
		transformer = etcd3.WithCorruptObjErrorHandlingTransformer(transformer)
		decoder = etcd3.WithCorruptObjErrorHandlingDecoder(decoder)
	}
	s, err := etcd3.New(client, c.compactor(), config.Codec, object, list, config.Prefix, prefix, config.GroupResource,
		transformer, config.LeaseManagerConfig, decoder, versioner)
	if err != nil {
		return store{}, err
	}
	if deletesUnreadable {
		return store{etcd3.NewStoreWithUnsafeCorruptObjectDeletion(s, config.GroupResource), s.Close}, nil
	}
	return store{s, s.Close}, nil
}
