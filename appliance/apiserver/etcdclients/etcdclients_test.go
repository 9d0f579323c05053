package etcdclients

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/component-base/metrics/legacyregistry"

	"kthwd/test/etcdtest"
	"kthwd/test/kthwtest"
)

// TestResourcesShareConnections has 30 resources, each with a watch of its own. One that is destroyed
// ends its own watch, and the last one closes the connections.
func TestResourcesShareConnections(t *testing.T) {
	between := startBetween(t, etcdtest.Start(t, false))
	config := config(between.address)
	const resources = 30
	type resource struct {
		storage.Interface
		destroy func()
		events  watch.Interface
	}
	all := make([]resource, resources)
	for i := range all {
		s, destroy := openStorage(t, config, i)
		all[i] = resource{s, destroy, watchAll(t, s, i)}
	}
	if n := between.total(); n != 2 {
		t.Errorf("%d resources made %d connections; want 2", resources, n)
	}
	for i, r := range all {
		create(t, r, i, "p")
		if got := added(t, r.events); got != "p" {
			t.Errorf("resource %d: the watch has %q", i, got)
		}
	}
	for _, r := range all[1:] {
		r.destroy()
		r.destroy() // as upstream does for subresources
		if _, more := <-r.events.ResultChan(); more {
			t.Error("a watch of a resource that is destroyed has another event")
		}
	}
	if err := all[0].Delete(t.Context(), key(0, "p"), &example.Pod{}, nil, storage.ValidateAllObjectFunc, nil, storage.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if e := <-all[0].events.ResultChan(); e.Type != watch.Deleted {
		t.Errorf("the watch of the resource that is left has %v; want %s", e, watch.Deleted)
	}
	if n := between.open(); n != 2 {
		t.Errorf("%d connections are open while a resource is left; want 2", n)
	}
	all[0].destroy()
	kthwtest.WaitFor(t, "no connection", time.Minute, func() error {
		if n := between.open(); n != 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
	s, destroy := openStorage(t, config, 0)
	defer destroy()
	create(t, s, 0, "p")
}

// TestConnectionsAreMadeAgain cuts both connections.
func TestConnectionsAreMadeAgain(t *testing.T) {
	between := startBetween(t, etcdtest.Start(t, false))
	s, destroy := openStorage(t, config(between.address), 0)
	defer destroy()
	events := watchAll(t, s, 0)
	create(t, s, 0, "before")
	added(t, events)
	between.cut()
	kthwtest.WaitFor(t, "a write", time.Minute, func() error {
		if err := put(t, s, 0, "after"); !storage.IsExist(err) { // the answer to the one before may be lost
			return err
		}
		return nil
	})
	if got := added(t, events); got != "after" {
		t.Errorf("the watch has %q after the cut", got)
	}
}

// TestWatchesDoNotWaitForReads has a connection for reads on which nothing moves: events arrive.
func TestWatchesDoNotWaitForReads(t *testing.T) {
	etcd := etcdtest.Start(t, false)
	between := startBetween(t, etcd)
	s, destroy := openStorage(t, config(between.address), 0)
	defer destroy()
	events := watchAll(t, s, 0)
	create(t, s, 0, "before")
	added(t, events)
	between.stop(0)
	other, destroyOther := openStorage(t, config(address(etcd)), 0)
	defer destroyOther()
	create(t, other, 0, "after")
	if got := added(t, events); got != "after" {
		t.Errorf("the watch has %q", got)
	}
	if n := between.total(); n != 2 {
		t.Errorf("the event came on another connection than those of before: %d were made; want 2", n)
	}
}

func TestWithoutEtcd(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + listener.Addr().String()
	listener.Close()
	c, err := opened(config(address).Transport, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ready(ctx, c.requests); !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want %v", err, context.Canceled)
	}
}

func TestCredentialsThatAreNotThere(t *testing.T) {
	c := config("https://127.0.0.1:1")
	c.Transport.CertFile, c.Transport.KeyFile = "/does/not/exist", "/does/not/exist"
	if _, _, err := Storage(c, pod, pods, "/pods"); err == nil || !strings.Contains(err.Error(), "/does/not/exist") {
		t.Errorf("error %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if n := len(known); n != 0 {
		t.Errorf("connections to %d etcds are left", n)
	}
}

// TestLeftToUpstream: an etcd behind a proxy, and a storage that is none.
func TestLeftToUpstream(t *testing.T) {
	asked := errors.New("the proxy was asked for")
	c := config("http://127.0.0.1:1")
	c.Transport.EgressLookup = func(egressselector.NetworkContext) (utilnet.DialFunc, error) {
		return nil, asked
	}
	if _, _, err := Storage(c, pod, pods, "/pods"); !errors.Is(err, asked) {
		t.Errorf("%v; want %v", err, asked)
	}
	c = config("http://127.0.0.1:1")
	c.Type = "etcd9"
	if _, _, err := Storage(c, pod, pods, "/pods"); err == nil || !strings.Contains(err.Error(), "etcd9") {
		t.Errorf("a storage of type etcd9: %v", err)
	}
}

// TestRequestsAreCounted in the registry that the API server shows.
func TestRequestsAreCounted(t *testing.T) {
	s, destroy := openStorage(t, config(address(etcdtest.Start(t, false))), 0)
	defer destroy()
	before := ranges(t)
	for range 3 {
		if err := s.Get(t.Context(), key(0, "p"), storage.GetOptions{IgnoreNotFound: true}, &example.Pod{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := ranges(t) - before; n != 3 {
		t.Errorf("3 requests are counted as %v", n)
	}
}

func ranges(t *testing.T) (n float64) {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "grpc_client_handled_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "grpc_method" && l.GetValue() == "Range" {
					n += m.GetCounter().GetValue()
				}
			}
		}
	}
	return n
}

// TestUpstreamsConfig fails when upstream's way to etcd has a setting that is not passed on.
func TestUpstreamsConfig(t *testing.T) {
	for _, c := range []struct {
		of    reflect.Type
		known []string
	}{
		{reflect.TypeFor[storagebackend.TransportConfig](), []string{"ServerList", "KeyFile", "CertFile", "TrustedCAFile", "EgressLookup", "TracerProvider"}},
		{reflect.TypeFor[storagebackend.Config](), []string{
			"Type", "Prefix", "Transport", "Codec", "Transformer", "CompactionInterval", "LeaseManagerConfig",
			// Of upstream's other users of etcd, and of the cache.
			"EncodeVersioner", "CountMetricPollPeriod", "DBMetricPollInterval", "EventsHistoryWindow", "HealthcheckTimeout", "ReadycheckTimeout", "StorageObjectCountTracker",
		}},
	} {
		known := map[string]bool{}
		for _, name := range c.known {
			known[name] = true
		}
		for _, f := range reflect.VisibleFields(c.of) {
			if !known[f.Name] {
				t.Errorf("%s has the field %s: compare with k8s.io/apiserver/pkg/storage/storagebackend/factory/etcd3.go", c.of, f.Name)
			}
		}
	}
}
