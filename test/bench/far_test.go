package bench

import (
	"fmt"
	"os"
	"runtime/debug"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	loneWindow = 30 * time.Second // shorter than a node without a kubelet stays ready
	farWrites  = 3000             // of 32 clients
)

// TestFar measures clusters whose objects are written to etcd directly, because their creation
// through the API takes longer than anything that is measured: see the package comment.
func TestFar(t *testing.T) {
	sizes := sizesOf(t, "KTHWD_BENCH_FAR", "a benchmark of minutes: make bench-far, or KTHWD_BENCH_FAR=100/3000 for a small one")
	sides := []side{separate, kthwd}
	f := &far{lone: os.Getenv("KTHWD_BENCH_LONE") != ""}
	if f.lone {
		sides = []side{kthwd}
	}
	debug.SetGCPercent(400) // the clients share the cores with what they measure
	f.scale = &scale{bench: newBench(t)}
	for _, size := range sizes {
		f.size, f.bench.results = size, newResults()
		for _, side := range sides {
			f.take(t, turn{fmt.Sprintf("far-%d-%d", size.nodes, size.pods), f.measure}, side, 0)
		}
		f.report(t) // also of a turn that failed: a side that does not stop has been measured
	}
}

// far is a run of make bench-far.
type far struct {
	*scale
	lone bool // kthwd only, and no kubelets
}

func (f *far) measure(t *testing.T, b *bench, p *plane, round int) {
	r := &scaleRun{scale: f.scale, plane: p, round: round}
	for i := range r.size.nodes {
		r.names = append(r.names, nodeName(i))
	}
	r.makeOne(t)
	r.stop(t)
	r.fillEtcd(t)
	if f.lone {
		f.measureLone(t, r)
		return
	}
	k := startKubelets(r.clients, r.names)
	defer func() { k.stop() }()
	r.restart(t)
	r.settle(t, time.Now())
	f.measureWrites(t, r)
	r.measureLists(t, scaleLists)
	k.stop()
	r.alone(t)
	begin := time.Now()
	r.stop(t)
	r.add(farStop, time.Since(begin).Seconds())
	b.results.restarts[p.side] += p.restarts()
}

// measureLone measures the start and the memory with no client at all.
func (f *far) measureLone(t *testing.T, r *scaleRun) {
	t.Helper()
	peak, stop := r.watchMemory()
	r.start(t)
	r.add(scaleRestart, r.awaitReady(t).Seconds())
	r.bind(t)
	r.add(scaleRestartBound, time.Since(r.started).Seconds())
	sleep(t.Context(), loneWindow)
	stop()
	r.add(scaleRestartPeak, *peak)
	r.add(scaleRestartRSS, r.memory(t).rss)
	begin := time.Now()
	r.stop(t)
	r.add(farStop, time.Since(begin).Seconds())
}

// measureWrites measures how many writes a second 32 clients make beside the kubelets.
func (f *far) measureWrites(t *testing.T, r *scaleRun) {
	t.Helper()
	ctx := within(t, fillBudget)
	begin := time.Now()
	if err := each(r.clients, farWrites, func(c *kubernetes.Clientset, i int) error {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"bench":"%d"}}}`, i)
		_, err := c.CoreV1().Pods("default").Patch(ctx, podName(i*7919%r.size.pods), types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	r.add(farWritten, farWrites/time.Since(begin).Seconds())
}

// makeOne starts the side and makes the first node, its kubelet and the first pod. It returns when
// the pod runs: what etcd has then is the model of all others.
func (r *scaleRun) makeOne(t *testing.T) {
	t.Helper()
	r.start(t)
	r.awaitReady(t)
	clients := r.clientsThatSpeak(t, workers+1, runtime.ContentTypeProtobuf)
	r.clients, r.watcher = clients[:workers], clients[workers]
	r.awaitServiceAccount(t, r.watcher)
	ctx := within(t, 5*time.Minute)
	if err := createNode(ctx, r.watcher, r.names[0]); err != nil {
		t.Fatal(err)
	}
	k := startKubelets(r.clients, r.names[:1])
	defer k.stop()
	pods := r.watcher.CoreV1().Pods("default")
	if _, err := pods.Create(ctx, scalePod(podName(0), 0), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for {
		pod, err := pods.Get(ctx, podName(0), metav1.GetOptions{})
		if err == nil && pod.Status.Phase == corev1.PodRunning {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("the first pod does not run: %v", err)
		}
		sleep(ctx, sampleEvery)
	}
}
