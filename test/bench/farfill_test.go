package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"

	"kthwd/appliance/pki"
)

const (
	fillClients = 8
	fillBatch   = 100      // objects of a transaction; etcd takes 128 (server/embed/config.go: DefaultMaxTxnOps)
	fillQuota   = 16 << 30 // bytes
)

// fillEtcd serves the data of a side that is stopped by an etcd alone, and writes all nodes, leases and
// pods to it, in the form in which an API server stores them.
func (r *scaleRun) fillEtcd(t *testing.T) {
	t.Helper()
	flags := append(etcdFlags(r.plane), "--unsafe-no-fsync", "--quota-backend-bytes="+strconv.Itoa(fillQuota))
	u := &unit{name: "etcd", argv: append([]string{r.programs.etcd}, flags...), log: filepath.Join(filepath.Dir(r.layout.Dir), "fill.log")}
	u.start(t)
	t.Cleanup(func() {
		if u.running() { // the test has failed
			u.terminate()
			_, _ = u.wait(stopBudget)
		}
	})
	client := r.etcdClient(t)
	ctx := within(t, fillBudget)
	begin := time.Now()
	node, lease, pod := new(corev1.Node), new(coordinationv1.Lease), new(corev1.Pod)
	read(ctx, t, client, nodeKey(r.names[0]), node)
	read(ctx, t, client, leaseKey(r.names[0]), lease)
	read(ctx, t, client, podKey(podName(0)), pod)
	var g errgroup.Group
	g.SetLimit(fillClients)
	write := func(n int, object func(i int) (key string, o runtime.Object)) {
		for from := 0; from < n; from += fillBatch {
			g.Go(func() error {
				var batch []clientv3.Op
				for i := from; i < min(from+fillBatch, n); i++ {
					key, o := object(i)
					value, err := stored(o)
					if err != nil {
						return err
					}
					batch = append(batch, clientv3.OpPut(key, string(value)))
				}
				_, err := client.Txn(ctx).Then(batch...).Commit()
				return err
			})
		}
	}
	write(r.size.nodes, func(i int) (string, runtime.Object) { return nodeKey(r.names[i]), nodeLike(node, r.names[i]) })
	write(r.size.nodes, func(i int) (string, runtime.Object) { return leaseKey(r.names[i]), leaseLike(lease, r.names[i]) })
	write(r.size.pods, func(i int) (string, runtime.Object) {
		return podKey(podName(i)), podLike(pod, i, r.names[i%len(r.names)])
	})
	if err := g.Wait(); err != nil {
		t.Fatalf("write to etcd: %v\n%s", err, u.tail(30))
	}
	status, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v nodes and %v pods are written in %v", r.size.nodes, r.size.pods, time.Since(begin).Round(time.Second))
	r.add(farData, float64(status.DbSizeInUse)/(1<<20))
	u.terminate()
	if _, err := u.wait(stopBudget); err != nil {
		t.Fatal(err)
	}
}

// etcdClient waits until the etcd of fillEtcd serves. It trusts all certificates of the cluster.
func (r *scaleRun) etcdClient(t *testing.T) *clientv3.Client {
	t.Helper()
	pem, err := os.ReadFile(r.layout.CA())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	cert, err := tls.LoadX509KeyPair(r.layout.Cert(pki.NameSuperAdmin), r.layout.Key(pki.NameSuperAdmin))
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(r.ports.EtcdClient))},
		TLS:         &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}},
		DialTimeout: startBudget,
		Context:     t.Context(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func nodeKey(name string) string { return "/registry/minions/" + name }
func leaseKey(name string) string {
	return "/registry/leases/" + corev1.NamespaceNodeLease + "/" + name
}
func podKey(name string) string { return "/registry/pods/default/" + name }

// read decodes a stored object.
func read(ctx context.Context, t *testing.T, client *clientv3.Client, key string, into runtime.Object) {
	t.Helper()
	got, err := client.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 {
		t.Fatalf("etcd lacks %s", key)
	}
	if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(got.Kvs[0].Value, nil, into); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
}

// stored is an object as an API server stores it.
func stored(o runtime.Object) ([]byte, error) {
	info, found := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !found {
		return nil, fmt.Errorf("no serializer for %s", runtime.ContentTypeProtobuf)
	}
	return runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, schema.GroupVersions{corev1.SchemeGroupVersion, coordinationv1.SchemeGroupVersion}), o)
}

func nodeLike(model *corev1.Node, name string) *corev1.Node {
	n := model.DeepCopy()
	n.Name, n.UID, n.Labels[corev1.LabelHostname] = name, uuid.NewUUID(), name
	return n
}

func leaseLike(model *coordinationv1.Lease, name string) *coordinationv1.Lease {
	l := model.DeepCopy()
	l.Name, l.UID, l.Spec.HolderIdentity = name, uuid.NewUUID(), &name
	return l
}

func podLike(model *corev1.Pod, i int, node string) *corev1.Pod {
	p := model.DeepCopy()
	group := fmt.Sprintf("g%d", i%groups)
	p.Name, p.UID, p.Spec.NodeName = podName(i), uuid.NewUUID(), node
	p.Labels["group"], p.Labels["app.kubernetes.io/instance"] = group, group
	return p
}
