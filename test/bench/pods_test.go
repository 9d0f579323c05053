package bench

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"golang.org/x/sync/errgroup"
)

const (
	podCount  = 1000
	nodeCount = 100
	workers   = 32
)

// measurePods binds 1000 pods to 100 fake nodes.
func measurePods(t *testing.T, b *bench, p *plane, round int) {
	// As controllers and kubelets do; they also leave more of the cores to what is measured.
	clients := p.clientsThatSpeak(t, workers+1, runtime.ContentTypeProtobuf)
	watcher, clients := clients[workers], clients[:workers]
	p.awaitServiceAccount(t, watcher)
	makeNodes(t, clients)
	p.awaitUntainted(t, watcher)
	createPod(t, watcher, "probe") // the scheduler knows the nodes and works
	p.awaitBound(t, watcher, "probe")

	var begin, first, last time.Time
	bound := map[string]bool{"probe": true}
	created := make(chan error, 1)
	p.await(t, "1000 pods bound", func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		w, err := watcher.CoreV1().Pods("default").Watch(ctx, o)
		if err == nil && begin.IsZero() {
			begin = time.Now()
			go func() { created <- createPods(ctx, clients) }()
		}
		return w, err
	}, "spec.nodeName!=", func(o runtime.Object) bool {
		if pod := o.(*corev1.Pod); !bound[pod.Name] {
			bound[pod.Name] = true
			last = time.Now()
			if first.IsZero() {
				first = last
			}
		}
		return len(bound) > podCount
	})
	if err := <-created; err != nil {
		t.Fatalf("create pods: %v", err)
	}
	b.results.add(metricPods, p.side, round, podCount/last.Sub(begin).Seconds())
	b.results.add(metricPodsBinding, p.side, round, (podCount-1)/last.Sub(first).Seconds())
}

func makeNodes(t *testing.T, clients []*kubernetes.Clientset) {
	t.Helper()
	ctx := within(t, time.Minute)
	if err := each(clients, nodeCount, func(c *kubernetes.Clientset, i int) error {
		return createNode(ctx, c, fmt.Sprintf("node-%03d", i))
	}); err != nil {
		t.Fatalf("create nodes: %v", err)
	}
}

// awaitUntainted waits until kube-controller-manager has taken from the nodes
// the taint that they were created with, so that it does not do so later.
func (p *plane) awaitUntainted(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	free := map[string]bool{}
	p.await(t, "nodes without taints", func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		return client.CoreV1().Nodes().Watch(ctx, o)
	}, "", func(o runtime.Object) bool {
		if node := o.(*corev1.Node); len(node.Spec.Taints) == 0 {
			free[node.Name] = true
		}
		return len(free) >= nodeCount
	})
}

func createPods(ctx context.Context, clients []*kubernetes.Clientset) error {
	return each(clients, podCount, func(c *kubernetes.Clientset, i int) error {
		_, err := c.CoreV1().Pods("default").Create(ctx, benchPod(fmt.Sprintf("pod-%04d", i)), metav1.CreateOptions{})
		return err
	})
}

// each does something n times, shared among the clients.
func each(clients []*kubernetes.Clientset, n int, do func(c *kubernetes.Clientset, i int) error) error {
	var g errgroup.Group
	for w, c := range clients {
		g.Go(func() error {
			var errs []error
			for i := w; i < n; i += len(clients) {
				errs = append(errs, do(c, i))
			}
			return errors.Join(errs...)
		})
	}
	return g.Wait()
}
