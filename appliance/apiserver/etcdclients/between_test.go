package etcdclients

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/apis/example/install"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

// between passes connections on to etcd, counts them, and may stop or cut them.
type between struct {
	address, etcd string
	mu            sync.Mutex
	made          []*passed
}

type passed struct {
	stopped chan struct{} // closed: nothing moves from then on
	client  net.Conn
	server  net.Conn
	ended   bool
}

func startBetween(t *testing.T, etcd *embed.Etcd) *between {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	b := &between{address: "unix://" + listener.Addr().String(), etcd: etcd.Clients[0].Addr().String()}
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := (&net.Dialer{}).DialContext(t.Context(), "unix", b.etcd)
			if err != nil {
				client.Close()
				continue
			}
			p := &passed{make(chan struct{}), client, server, false}
			b.mu.Lock()
			b.made = append(b.made, p)
			b.mu.Unlock()
			ended.Go(func() { b.pass(p, server, client) })
			ended.Go(func() { b.pass(p, client, server) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		b.cut()
		ended.Wait()
	})
	return b
}

func (b *between) pass(p *passed, to, from net.Conn) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		p.ended = true
		to.Close()
		from.Close()
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-p.stopped:
			if err == nil {
				continue
			}
		default:
		}
		if err != nil {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (b *between) total() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.made)
}

func (b *between) open() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.made {
		if !p.ended {
			n++
		}
	}
	return n
}

func (b *between) stop(i int) { close(b.made[i].stopped) }

func (b *between) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.made {
		p.client.Close()
		p.server.Close()
	}
}

// shortDir is short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kthwd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func address(etcd *embed.Etcd) string { return "unix://" + etcd.Clients[0].Addr().String() }

func config(server string) *storagebackend.ConfigForResource {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	codecs := serializer.NewCodecFactory(scheme)
	c := storagebackend.NewDefaultConfig("/registry", codecs.LegacyCodec(examplev1.SchemeGroupVersion))
	c.Transport.ServerList = []string{server}
	return c.ForResource(schema.GroupResource{Group: example.GroupName, Resource: "pods"})
}

func pod() runtime.Object  { return &example.Pod{} }
func pods() runtime.Object { return &example.PodList{} }

func prefix(resource int) string           { return fmt.Sprintf("/pods%d/", resource) }
func key(resource int, name string) string { return prefix(resource) + name }

func openStorage(t *testing.T, c *storagebackend.ConfigForResource, resource int) (storage.Interface, func()) {
	t.Helper()
	s, destroy, err := Undecorated(c, prefix(resource), nil, pod, pods, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(destroy)
	return s, destroy
}

func watchAll(t *testing.T, s storage.Interface, resource int) watch.Interface {
	t.Helper()
	w, err := s.Watch(t.Context(), prefix(resource), storage.ListOptions{Recursive: true, Predicate: storage.Everything})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

func create(t *testing.T, s storage.Interface, resource int, name string) {
	t.Helper()
	if err := put(t, s, resource, name); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, s storage.Interface, resource int, name string) error {
	t.Helper()
	return s.Create(t.Context(), key(resource, name), &example.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil, 0)
}

// added is the name in the next event, which must be of a new object.
func added(t *testing.T, w watch.Interface) string {
	t.Helper()
	e := <-w.ResultChan()
	p, is := e.Object.(*example.Pod)
	if e.Type != watch.Added || !is {
		t.Fatalf("the watch has %v", e)
	}
	return p.Name
}
