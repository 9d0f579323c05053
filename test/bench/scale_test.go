package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	scaleSizes  = "100/3000,500/15000,1000/30000"
	fillBudget  = 30 * time.Minute
	sampleEvery = 500 * time.Millisecond
	groups      = 50 // of pods, by label
	binds       = 20 // one after the other
	bindsAgain  = 10 // … right after a restart
	gets        = 200
	patches     = 100
	lists       = 10
)

// size is that of a cluster.
type size struct{ nodes, pods int }

func (s size) String() string { return fmt.Sprintf("%d/%d", s.nodes, s.pods) }

// readSizes reads such as 100/3000,500/15000.
func readSizes(text string) (all []size, err error) {
	for one := range strings.SplitSeq(text, ",") {
		var s size
		if n, err := fmt.Sscanf(one, "%d/%d", &s.nodes, &s.pods); err != nil || n != 2 || s.String() != one || s.nodes < 1 || s.pods < 1 {
			return nil, fmt.Errorf("KTHWD_BENCH_SCALE: %q is no size; want NODES/PODS, such as 100/3000", one)
		}
		if s.pods > 100*s.nodes {
			return nil, fmt.Errorf("KTHWD_BENCH_SCALE: %q: a node takes 110 pods at most; want 100 or fewer for each", one)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b size) int { return a.pods - b.pods })
	return all, nil
}

// scale is a run of make bench-scale.
type scale struct {
	*bench
	sizes   []size
	results map[size]*results
	size    size // of the present turn
}

// TestScale compares the two sides with clusters of several sizes: see the package comment.
func TestScale(t *testing.T) {
	sizes := sizesOf(t, "KTHWD_BENCH_SCALE", "a benchmark of an hour: make bench-scale, or KTHWD_BENCH_SCALE=20/300 for a small one")
	debug.SetGCPercent(400) // the clients share the cores with what they measure
	s := &scale{sizes: sizes, results: map[size]*results{}, bench: newBench(t)}
	for _, size := range sizes {
		s.size, s.results[size] = size, newResults()
		for round := range number(t, "KTHWD_BENCH_ROUNDS", 1) {
			s.bench.results = s.results[size]
			name := fmt.Sprintf("scale-%d-%d", size.nodes, size.pods)
			for i := range 2 { // the side that begins changes, too
				s.take(t, turn{name, s.measure}, []side{separate, kthwd}[(i+round)%2], round)
				if t.Failed() {
					return
				}
			}
			s.results[size] = s.bench.results
		}
	}
	s.report(t)
}

// sizesOf reads the sizes from the environment, and skips the test without them.
func sizesOf(t *testing.T, variable, skip string) []size {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		t.Skip(skip)
	}
	sizes, err := readSizes(text)
	if err != nil {
		t.Fatal(err)
	}
	return sizes
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }
func podName(i int) string  { return fmt.Sprintf("pod-%05d", i) }

// scaleRun is the cluster of one turn.
type scaleRun struct {
	*scale
	*plane
	round   int
	clients []*kubernetes.Clientset // as controllers and kubelets
	watcher *kubernetes.Clientset
	names   []string
	bound   int // pods that were made one after the other
}

func (s *scale) measure(t *testing.T, b *bench, p *plane, round int) {
	p.start(t)
	p.awaitReady(t)
	clients := p.clientsThatSpeak(t, workers+1, runtime.ContentTypeProtobuf)
	r := &scaleRun{scale: s, plane: p, round: round, clients: clients[:workers], watcher: clients[workers]}
	p.awaitServiceAccount(t, r.watcher)
	r.makeCluster(t)
	k := startKubelets(r.clients, r.names)
	defer func() { k.stop() }()
	r.awaitNodes(t)

	t.Logf("%v nodes are ready", r.size.nodes)
	filled := r.fill(t)
	t.Logf("%v pods run", r.size.pods)
	r.settle(t, filled)
	r.requests(t)
	k.stop()
	t.Log("requests are measured; next without a client, then the restart")
	r.alone(t)
	k = startKubelets(r.clients, r.names)
	sleep(t.Context(), watchAgain)
	r.restart(t)
	b.results.restarts[p.side] += p.restarts()
}

func (r *scaleRun) add(m *metric, value float64) {
	r.bench.results.add(m, r.plane.side, r.round, value)
}

// addTimes adds the two percentiles of durations, in milliseconds.
func (r *scaleRun) addTimes(m latency, times []time.Duration) {
	slices.Sort(times)
	at := func(q float64) float64 {
		i := int(math.Ceil(q*float64(len(times)))) - 1
		return float64(times[max(i, 0)].Microseconds()) / 1000
	}
	r.add(m.p50, at(0.50))
	r.add(m.p99, at(0.99))
}

func (r *scaleRun) makeCluster(t *testing.T) {
	t.Helper()
	for i := range r.size.nodes {
		r.names = append(r.names, nodeName(i))
	}
	ctx := within(t, 5*time.Minute)
	if err := each(r.clients, len(r.names), func(c *kubernetes.Clientset, i int) error { return createNode(ctx, c, r.names[i]) }); err != nil {
		t.Fatalf("create nodes: %v", err)
	}
}

// awaitNodes waits until kube-controller-manager has taken the taints off, and the scheduler works.
func (r *scaleRun) awaitNodes(t *testing.T) {
	t.Helper()
	free := map[string]bool{}
	r.await(t, "nodes without taints", func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return r.watcher.CoreV1().Nodes().Watch(ctx, o)
	}, "", func(o runtime.Object) bool {
		if node := o.(*corev1.Node); len(node.Spec.Taints) == 0 {
			free[node.Name] = true
		}
		return len(free) >= r.size.nodes
	})
	r.bind(t)
}

// fill makes the pods, waits until all run, and returns when that was.
func (r *scaleRun) fill(t *testing.T) time.Time {
	t.Helper()
	peak, stop := r.watchMemory()
	ctx := within(t, fillBudget)
	before, begin := r.revision(t), time.Now()
	if err := each(r.clients, r.size.pods, func(c *kubernetes.Clientset, i int) error {
		_, err := c.CoreV1().Pods("default").Create(ctx, scalePod(podName(i), i), metav1.CreateOptions{})
		return err
	}); err != nil {
		t.Fatalf("create pods: %v", err)
	}
	seconds := time.Since(begin).Seconds()
	r.add(scaleCreated, float64(r.size.pods)/seconds)
	r.add(scaleWrites, (r.revision(t)-before)/seconds)
	for {
		done, err := r.watcher.CoreV1().Pods("default").List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Pending", Limit: 1})
		if err == nil && len(done.Items) == 0 {
			break
		}
		if ctx.Err() != nil || r.broken() != nil {
			t.Fatalf("pods are not running within %v: %v %v", fillBudget, err, r.broken())
		}
		sleep(ctx, sampleEvery)
	}
	r.add(scaleRunning, float64(r.size.pods)/time.Since(begin).Seconds())
	r.add(scaleFilledRSS, r.memory(t).rss)
	stop()
	r.add(scalePeakRSS, *peak)
	return time.Now()
}

// revision is that of etcd: each write has one.
func (r *scaleRun) revision(t *testing.T) float64 {
	t.Helper()
	list, err := r.watcher.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	revision, err := strconv.ParseFloat(list.ResourceVersion, 64)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// watchMemory keeps the highest RSS until stop is called.
func (r *scaleRun) watchMemory() (peak *float64, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	peak = new(float64)
	var g sync.WaitGroup
	g.Go(func() {
		every(ctx, 0, sampleEvery, func() {
			sum := 0.0
			for _, u := range r.units {
				fields, _ := readRollup(u.pid()) // none of a process that has ended: that is seen elsewhere
				sum += fields["Rss"]
			}
			*peak = max(*peak, sum)
		})
	})
	return peak, func() { cancel(); g.Wait() }
}

// settle lets the cluster be used by its kubelets only.
func (r *scaleRun) settle(t *testing.T, filled time.Time) {
	t.Helper()
	time.Sleep(time.Until(filled.Add(r.idle)))
	begin := time.Now()
	before := r.allTicks()
	if r.profile > 0 {
		go r.saveProfile(t.Context(), r.plane, r.round)
	}
	time.Sleep(time.Until(begin.Add(r.idle)))
	r.add(scaleHeartbeats, (r.allTicks()-before)*60/time.Since(begin).Seconds())
	r.add(scaleSettledRSS, r.memory(t).rss)
}

// requests measures single requests, one after the other, beside the kubelets.
func (r *scaleRun) requests(t *testing.T) {
	t.Helper()
	ctx := within(t, 5*time.Minute)
	client := r.clientsThatSpeak(t, 1, runtime.ContentTypeProtobuf)[0].CoreV1()
	pods := client.Pods("default")
	name := func(i int) string { return podName(i * 7919 % r.size.pods) }
	r.addTimes(scaleBind, r.times(t, binds, func(int) error { r.bind(t); return nil }))
	r.addTimes(scaleGet, r.times(t, gets, func(i int) error {
		_, err := pods.Get(ctx, name(i), metav1.GetOptions{})
		return err
	}))
	r.addTimes(scalePatch, r.times(t, patches, func(i int) error {
		_, err := pods.Patch(ctx, name(i), types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{"bench":"%d"}}}`, i), metav1.PatchOptions{})
		return err
	}))
	r.measureLists(t, scaleLists)
}

// measureLists reads the lists of the table, without decoding them.
func (r *scaleRun) measureLists(t *testing.T, to [3]latency) {
	t.Helper()
	client := r.clientsThatSpeak(t, 1, runtime.ContentTypeProtobuf)[0].CoreV1().RESTClient()
	ctx := within(t, 5*time.Minute)
	for i, options := range []metav1.ListOptions{{Limit: 500}, {}, {LabelSelector: "group=g7"}} {
		r.addTimes(to[i], r.times(t, lists, func(int) error {
			_, err := client.Get().Namespace("default").Resource("pods").VersionedParams(&options, scheme.ParameterCodec).DoRaw(ctx)
			return err
		}))
	}
}

func (r *scaleRun) times(t *testing.T, n int, do func(i int) error) (all []time.Duration) {
	t.Helper()
	for i := range n {
		begin := time.Now()
		if err := do(i); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(begin))
	}
	return all
}

// bind makes a pod, and returns when it has a node.
func (r *scaleRun) bind(t *testing.T) {
	t.Helper()
	r.bound++
	name := fmt.Sprintf("bind-%03d", r.bound)
	createPod(t, r.watcher, name)
	r.awaitBound(t, r.watcher, name)
}

// alone measures the CPU of the cluster with no client, shorter than a node's lease.
func (r *scaleRun) alone(t *testing.T) {
	t.Helper()
	time.Sleep(min(5*time.Second, r.idle/4))
	begin, before := time.Now(), r.allTicks()
	time.Sleep(min(20*time.Second, r.idle))
	r.add(scaleAlone, (r.allTicks()-before)*60/time.Since(begin).Seconds())
}

// restart stops the side and starts it with its data, while its kubelets try to reach it.
func (r *scaleRun) restart(t *testing.T) {
	t.Helper()
	r.stop(t)
	peak, stop := r.watchMemory()
	r.start(t)
	r.add(scaleRestart, r.awaitReady(t).Seconds())
	r.bind(t)
	r.add(scaleRestartBound, time.Since(r.started).Seconds())
	r.addTimes(scaleBindAgain, r.times(t, bindsAgain, func(int) error { r.bind(t); return nil }))
	r.measureLists(t, scaleListsAgain)
	r.add(scaleRestartDone, time.Since(r.started).Seconds())
	stop()
	r.add(scaleRestartPeak, *peak)
	time.Sleep(r.idle)
	r.add(scaleRestartRSS, r.memory(t).rss)
}

// scalePod is about as large as pods of a Deployment are.
func scalePod(name string, i int) *corev1.Pod {
	pod := benchPod(name)
	group := fmt.Sprintf("g%d", i%groups)
	pod.Labels = map[string]string{
		"app": "bench", "group": group, "app.kubernetes.io/name": "bench", "app.kubernetes.io/instance": group,
		"app.kubernetes.io/component": "server", "pod-template-hash": "5d4f8c7b9d",
	}
	pod.Annotations = map[string]string{"prometheus.io/scrape": "true", "checksum/config": payload[:64]}
	c := &pod.Spec.Containers[0]
	for n := range 8 {
		c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", n), Value: payload[n*24 : n*24+24]})
	}
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "config", MountPath: "/etc/bench"}, {Name: "tmp", MountPath: "/tmp"}}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "bench"}}}},
		{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	return pod
}
