package watchcache

import (
	"context"
	"fmt"
	"reflect"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/apis/example/install"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	feature "k8s.io/apiserver/pkg/util/feature"
	featuretest "k8s.io/component-base/featuregate/testing"

	"kthwd/appliance/apiserver/etcdclients"
	"kthwd/test/etcdtest"
	"kthwd/test/kthwtest"
)

var pods = schema.GroupResource{Group: example.GroupName, Resource: "pods"}

// TestListsDoNotWaitForTheTick lists a resource that nobody writes, again and again, while others
// write to etcd. The cache's watch has a stream of its own if the feature gate says so.
func TestListsDoNotWaitForTheTick(t *testing.T) {
	for _, separate := range []bool{false, true} {
		t.Run(fmt.Sprintf("%s=%v", features.SeparateCacheWatchRPC, separate), func(t *testing.T) {
			if separate { // later versions have the gate locked
				featuretest.SetFeatureGateEmulationVersionDuringTest(t, feature.DefaultFeatureGate, version.MajorMinor(1, 35))
			}
			featuretest.SetFeatureGateDuringTest(t, feature.DefaultFeatureGate, features.SeparateCacheWatchRPC, separate)
			testLists(t)
		})
	}
}

func testLists(t *testing.T) {
	t.Helper()
	etcd := etcdtest.Start(t, false)
	upstream := getter(etcd)
	without, with := open(t, upstream), open(t, Prompt(upstream))
	client := etcdtest.Client(t, etcd)
	lists := func(s storage.Interface) time.Duration {
		begun := time.Now()
		for i := range 20 {
			if _, err := client.Put(t.Context(), "/elsewhere", fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
			list(t, s)
		}
		return time.Since(begun)
	}
	const most = 0.5
	if ticks, prompt := lists(without), lists(with); float64(prompt) > most*float64(ticks) {
		t.Errorf("20 lists took %s, and %s without Prompt; want at most %.1f of it", prompt, ticks, most)
	}
}

// TestListsAreConsistent has clients that write and list at the same time: each list has all that
// was written before it.
func TestListsAreConsistent(t *testing.T) {
	s := open(t, Prompt(getter(etcdtest.Start(t, false))))
	var written atomic.Int64
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for i := range 25 {
				pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("p-%d-%d", client, i)}}
				if err := s.Create(t.Context(), "/pods/ns/"+pod.Name, pod, &example.Pod{}, 0); err != nil {
					t.Error(err)
					return
				}
				before := written.Add(1)
				if got := len(list(t, s).Items); int64(got) < before {
					t.Errorf("a list has %d pods; %d were written before it", got, before)
				}
			}
		})
	}
	clients.Wait()
	if got := len(list(t, s).Items); got != 200 {
		t.Errorf("the last list has %d pods; want 200", got)
	}
}

// TestManyReadersAskSeldom has more readers than there may be requests for progress: none is
// forgotten, and they share requests.
func TestManyReadersAskSeldom(t *testing.T) {
	counted := &counting{revision: 7}
	p := &prompted{Interface: counted}
	const readers = 500
	var all sync.WaitGroup
	begun := time.Now()
	for range readers {
		all.Go(func() {
			if revision, err := p.GetCurrentResourceVersion(t.Context()); err != nil || revision != 7 {
				t.Errorf("revision %d, %v; want 7", revision, err)
			}
		})
	}
	all.Wait()
	kthwtest.WaitFor(t, "a request for progress after the last reader", time.Minute, func() error {
		if last := counted.last.Load(); last < readers {
			return fmt.Errorf("the latest came after %d of %d", last, readers)
		}
		return nil
	})
	if most := int64(time.Since(begun)/gap) + 2; counted.requests.Load() > most {
		t.Errorf("%d requests for progress; want at most %d, one each %s", counted.requests.Load(), most, gap)
	}
}

// TestAHungWatch has readers while a request for progress does not return.
func TestAHungWatch(t *testing.T) {
	counted := &counting{revision: 7, hang: make(chan struct{})}
	p := &prompted{Interface: counted}
	for begun := time.Now(); counted.requests.Load() == 0 || time.Since(begun) < 4*gap; goruntime.Gosched() {
		if _, err := p.GetCurrentResourceVersion(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := counted.requests.Load(); n != 1 {
		t.Errorf("%d requests hang; want 1", n)
	}
	close(counted.hang)
	kthwtest.WaitFor(t, "a request for the readers that came meanwhile", time.Minute, func() error {
		if last, all := counted.last.Load(), counted.readers.Load(); last != all {
			return fmt.Errorf("the latest came after %d of %d", last, all)
		}
		return nil
	})
}

func TestDecorators(t *testing.T) {
	etcd := etcdtest.Start(t, false)
	decorator := func(g generic.RESTOptionsGetter, resource string) uintptr {
		o, err := g.GetRESTOptions(schema.GroupResource{Group: example.GroupName, Resource: resource}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return reflect.ValueOf(o.Decorator).Pointer()
	}
	upstream := getter(etcd)
	upstream.Options.WatchCacheSizes = []string{"replicasets." + example.GroupName + "#0", "pods." + example.GroupName + "#100"}
	off := getter(etcd)
	off.Options.EnableWatchCache = false
	foreign := generic.RESTOptions{Decorator: generic.UndecoratedStorage}
	for _, c := range []struct {
		name, resource string
		getter         generic.RESTOptionsGetter
		want           generic.StorageDecorator
	}{
		{name: "a resource with a cache", getter: upstream, resource: "pods", want: cached},
		{name: "a resource whose cache is off", getter: upstream, resource: "replicasets", want: etcdclients.Undecorated},
		{name: "all caches off", getter: off, resource: "pods", want: etcdclients.Undecorated},
		{name: "another getter", getter: foreign, resource: "pods", want: generic.UndecoratedStorage},
	} {
		if got, want := decorator(Prompt(c.getter), c.resource), reflect.ValueOf(c.want).Pointer(); got != want {
			t.Errorf("%s: the decorator is %s; want %s", c.name, goruntime.FuncForPC(got).Name(), goruntime.FuncForPC(want).Name())
		}
	}
}

// TestUpstreamsConfig fails when upstream's cache has a setting that cached does not pass on.
func TestUpstreamsConfig(t *testing.T) {
	known := []string{
		"Storage", "Versioner", "GroupResource", "EventsHistoryWindow", "ResourcePrefix", "KeyFunc", "GetAttrsFunc",
		"IndexerFuncs", "Indexers", "NewFunc", "NewListFunc", "Codec",
		"Clock", // left to upstream's default, as storage_factory.go leaves it
	}
	var names []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[cacher.Config]()) {
		names = append(names, f.Name)
	}
	if !reflect.DeepEqual(names, known) {
		t.Errorf("cacher.Config has the fields\n%q; known are\n%q: compare cached with k8s.io/apiserver/pkg/registry/generic/registry/storage_factory.go", names, known)
	}
}

// counting counts the readers and the requests for progress.
type counting struct {
	storage.Interface
	revision uint64
	readers  atomic.Int64
	requests atomic.Int64
	last     atomic.Int64  // how many readers had come before the latest request
	hang     chan struct{} // until it is closed, requests do not return; nil if they do
}

func (c *counting) GetCurrentResourceVersion(context.Context) (uint64, error) {
	c.readers.Add(1)
	return c.revision, nil
}

func (c *counting) RequestWatchProgress(context.Context) error {
	c.requests.Add(1)
	c.last.Store(c.readers.Load())
	if c.hang != nil {
		<-c.hang
	}
	return nil
}

// getter is upstream's, for the example API on that etcd.
func getter(etcd *embed.Etcd) *options.StorageFactoryRestOptionsFactory {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	codecs := serializer.NewCodecFactory(scheme)
	config := storagebackend.NewDefaultConfig("/registry", codecs.LegacyCodec(examplev1.SchemeGroupVersion))
	config.Transport.ServerList = []string{etcd.Clients[0].Addr().Network() + "://" + etcd.Clients[0].Addr().String()}
	etcdOptions := options.NewEtcdOptions(config)
	return etcdOptions.CreateRESTOptionsGetter(&options.SimpleStorageFactory{StorageConfig: etcdOptions.StorageConfig}, nil).(*options.StorageFactoryRestOptionsFactory)
}

// open opens the storage of pods with its cache, and waits until it serves.
func open(t *testing.T, g generic.RESTOptionsGetter) storage.Interface {
	t.Helper()
	o, err := g.GetRESTOptions(pods, &example.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	key := func(o runtime.Object) (string, error) {
		pod := o.(*example.Pod)
		return "/pods/" + pod.Namespace + "/" + pod.Name, nil
	}
	attributes := func(o runtime.Object) (labels.Set, fields.Set, error) {
		return o.(*example.Pod).Labels, nil, nil
	}
	s, destroy, err := o.Decorator(o.StorageConfig, "/pods", key,
		func() runtime.Object { return &example.Pod{} }, func() runtime.Object { return &example.PodList{} }, attributes, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(destroy)
	kthwtest.WaitFor(t, "the cache", time.Minute, s.ReadinessCheck)
	list(t, s)
	return s
}

func list(t *testing.T, s storage.Interface) *example.PodList {
	t.Helper()
	found := &example.PodList{}
	if err := s.GetList(t.Context(), "/pods/", storage.ListOptions{Recursive: true, Predicate: storage.Everything}, found); err != nil {
		t.Error(err)
	}
	return found
}
