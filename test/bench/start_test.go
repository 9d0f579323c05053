package bench

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const retryPause = 5 * time.Millisecond

// measureStart measures from exec to the first pod bound, and a start on
// existing data.
func measureStart(t *testing.T, b *bench, p *plane, round int) {
	record := func(m *metric, d time.Duration) { b.results.add(m, p.side, round, d.Seconds()) }
	p.start(t)
	record(metricReady, p.awaitReady(t))
	client := p.clients(t, 1)[0]
	node := make(chan error, 1)
	ctx := within(t, startBudget)
	go func() { node <- createNode(ctx, client, "node-0") }()
	p.awaitServiceAccount(t, client)
	record(metricServiceAccount, time.Since(p.started))
	createPod(t, client, "first")
	p.awaitBound(t, client, "first")
	record(metricFirstPod, time.Since(p.started))
	b.results.add(metricStartCPU, p.side, round, p.allTicks()/100)
	if err := <-node; err != nil {
		t.Fatalf("create node: %v", err)
	}
	p.stop(t)
	p.start(t)
	record(metricRestart, p.awaitReady(t))
	b.results.restarts[p.side] += p.restarts()
}

// createNode creates a node as a kubelet does, ready and with room, and tries
// until the API accepts it.
func createNode(ctx context.Context, client kubernetes.Interface, name string) error {
	now := metav1.Now()
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
			LastHeartbeatTime: now, LastTransitionTime: now,
		}}},
	}
	for {
		_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx)
	}
}

// benchPod tolerates every taint: the fake nodes' heartbeats are not kept up.
func benchPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "bench"}},
		Spec: corev1.PodSpec{
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example/bench:1",
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi"),
				}},
			}},
		},
	}
}

// createPod creates a pod in the namespace default, and tries until the API
// accepts it: admission learns of the service account a moment after we do.
func createPod(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		_, err := client.CoreV1().Pods("default").Create(ctx, benchPod(name), metav1.CreateOptions{})
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("create pod %s: %v", name, err)
		}
		pause(ctx)
	}
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(retryPause):
	}
}

// awaitServiceAccount waits for the ServiceAccount default/default, without
// which no pod is accepted.
func (p *plane) awaitServiceAccount(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	p.await(t, "ServiceAccount default/default", func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return client.CoreV1().ServiceAccounts("default").Watch(ctx, o)
	}, named("default"), func(runtime.Object) bool { return true })
}

// awaitBound waits until the pod has a node.
func (p *plane) awaitBound(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	p.await(t, "pod "+name+" bound", func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return client.CoreV1().Pods("default").Watch(ctx, o)
	}, named(name), func(o runtime.Object) bool { return o.(*corev1.Pod).Spec.NodeName != "" })
}

func named(name string) string { return fields.OneTermEqualSelector("metadata.name", name).String() }

type openWatch func(context.Context, metav1.ListOptions) (watch.Interface, error)

// await watches what selector selects, beginning with what is there, until seen
// says that it has seen enough.
func (p *plane) await(t *testing.T, what string, open openWatch, selector string, seen func(runtime.Object) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startBudget)
	defer cancel()
	for ctx.Err() == nil && p.broken() == nil {
		w, err := open(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			pause(ctx)
			continue
		}
		for e := range w.ResultChan() {
			if (e.Type == watch.Added || e.Type == watch.Modified) && seen(e.Object) {
				w.Stop()
				return
			}
		}
	}
	t.Fatalf("%v: %s: not within %v (%v)", p.side, what, startBudget, p.broken())
}
