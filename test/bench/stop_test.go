package bench

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const watchers = 50

// measureStop measures from SIGTERM to the end while clients watch: of kthwd,
// and once of a kube-apiserver, which waits a minute for its watchers.
func measureStop(t *testing.T, b *bench, p *plane, round int) {
	served := p.units[0] // kthwd, whichever it is
	if len(p.units) > 1 {
		served = p.unit(t, "kube-apiserver")
		if round > 0 {
			return
		}
	}
	clients := p.clients(t, watchers)
	p.awaitServiceAccount(t, clients[0])
	for i, c := range clients {
		w, err := openNth(t.Context(), c, i)
		if err != nil {
			t.Fatalf("watch: %v", err)
		}
		go func() {
			for range w.ResultChan() {
			}
		}()
	}
	begin := time.Now()
	served.terminate()
	exit, err := served.wait(stopBudget)
	if err != nil {
		t.Fatal(err)
	}
	if exit.code != 0 && p.side == kthwd {
		t.Fatalf("%s: exit code %d after SIGTERM; want 0", served.name, exit.code)
	}
	b.results.add(metricStop, p.side, round, exit.at.Sub(begin).Seconds())
}

// openNth watches one of the kinds that kubelets and kubectl watch.
func openNth(ctx context.Context, c *kubernetes.Clientset, i int) (watch.Interface, error) {
	switch i % 4 {
	case 0:
		return c.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{})
	case 1:
		return c.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{})
	case 2:
		return c.CoreV1().Services("").Watch(ctx, metav1.ListOptions{})
	default:
		return c.CoreV1().ConfigMaps("").Watch(ctx, metav1.ListOptions{})
	}
}
