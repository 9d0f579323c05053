package fault

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"kthwd/appliance/upgrade"
	"kthwd/test/kthwtest"
)

// upgradeClient makes config maps at a steady rate, and watches them.
type upgradeClient struct {
	client kubernetes.Interface
	stop   func() // of the writes

	mu     sync.Mutex
	acked  []string
	failed map[string]int // by error
	seen   map[string]bool
	sent   atomic.Int64
	ended  error // of the watch
}

// A write begins every upgradeWriteEvery, and does not wait for the one before. Where the machine is slower
// than that, upgradeWritesAtOnce bounds those under way: a cluster that falls behind would never catch up.
const (
	upgradeWriteEvery   = 20 * time.Millisecond
	upgradeWritesAtOnce = 10
)

// startUpgradeClient begins with an event that the watch has seen, so that it misses none after it.
func startUpgradeClient(t *testing.T, client kubernetes.Interface) *upgradeClient {
	t.Helper()
	w := &upgradeClient{client: client, failed: map[string]int{}, seen: map[string]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	list, err := client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	watcher, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.CoreV1().ConfigMaps("default").Watch(ctx, o)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var watching, wait sync.WaitGroup
	watching.Go(func() { w.follow(watcher.ResultChan()) })
	writing, stop := context.WithCancel(ctx)
	wait.Go(func() {
		tick := time.NewTicker(upgradeWriteEvery)
		defer tick.Stop()
		var writers errgroup.Group
		writers.SetLimit(upgradeWritesAtOnce)
		for i := 0; ; i++ {
			select {
			case <-writing.Done():
				_ = writers.Wait()
				return
			case <-tick.C:
				writers.Go(func() error { w.write(ctx, fmt.Sprintf("steady-%d", i)); return nil })
			}
		}
	})
	w.stop = func() { stop(); wait.Wait() }
	t.Cleanup(func() { w.stop(); cancel(); watching.Wait() })
	return w
}

func (w *upgradeClient) follow(events <-chan watch.Event) {
	for e := range events {
		w.mu.Lock()
		if m, ok := e.Object.(*corev1.ConfigMap); !ok {
			w.ended = fmt.Errorf("%s %v", e.Type, e.Object)
		} else if e.Type == watch.Added {
			w.seen[m.Name] = true
		}
		w.mu.Unlock()
	}
}

// write makes one attempt.
func (w *upgradeClient) write(ctx context.Context, name string) {
	w.sent.Add(1)
	_, err := w.client.CoreV1().ConfigMaps("default").Create(ctx, configMap(name, nil), metav1.CreateOptions{})
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.failed[strings.ReplaceAll(err.Error(), name, "NAME")]++
	default:
		w.acked = append(w.acked, name)
	}
}

// check requires that every acknowledged write is there and was seen, and reports the failures.
func (w *upgradeClient) check(t *testing.T) {
	t.Helper()
	kthwtest.WaitFor(t, "the watch to have seen every acknowledged write", soon, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.ended != nil {
			t.Fatalf("the watch has ended: %v", w.ended)
		}
		for _, name := range w.acked {
			if !w.seen[name] {
				return fmt.Errorf("%s was not seen", name)
			}
		}
		return nil
	})
	w.mu.Lock()
	acked := append([]string{}, w.acked...)
	w.mu.Unlock()
	list, err := w.client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, m := range list.Items {
		there[m.Name] = true
	}
	for _, name := range acked {
		if !there[name] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	failed := 0
	for what, n := range w.failed {
		failed += n
		t.Logf("%d requests failed: %s", n, what)
	}
	t.Logf("%d requests, %d acknowledged, %d failed", w.sent.Load(), len(acked), failed)
	if len(acked) == 0 || failed*100 > int(w.sent.Load()) {
		t.Errorf("%d of %d requests failed", failed, w.sent.Load())
	}
}

// replace stops controller i and starts it with another kthwd.
func (m *made) replace(t *testing.T, all *[3]*kthwtest.Controller, i int, binary string) {
	t.Helper()
	stop(t, all[i], syscall.SIGTERM, 0)
	m.binary = binary
	all[i] = m.start(t, i)
	all[i].WaitReady(t)
}

// Three controllers behind a balancer are upgraded one after the other, taken back in the middle
// and at the end, and upgraded for good, while a client writes and watches.
func TestRollingUpgrade(t *testing.T) {
	endToEnd(t, "TestJudge, TestUpgradeAndBack")
	previous := kthwtest.Previous(t)
	kthwtest.Turn(t, 3)
	m := makeCluster(t)
	m.binary = previous
	all := m.startAll(t)
	balancer := m.startPatientBalancer(t)
	balancer.WaitReady(t)
	client := all[0].Client(t)
	kthwtest.WaitFor(t, "the balancer to pass requests on", soon, func() error { return write(t, client, "first") })
	w := startUpgradeClient(t, client)
	answering := func(c upgrade.Controller) bool { return c.Away == "" && c.Unwell == "" }

	m.replace(t, &all, 0, "")
	stage(t, all[0], upgrade.StageRolling, answering)
	wantVerb(t, all[0], 1, []string{"c1 is still on Kubernetes", "c2 is still on Kubernetes"}, "finish")
	wantVerb(t, all[0], 0, []string{"run the old kthwd again on c0"}, "back")
	m.replace(t, &all, 0, previous)
	kthwtest.WaitFor(t, "a write after the way back in the middle", soon, func() error { return write(t, client, "middle") })

	for i := range all {
		m.replace(t, &all, i, "")
	}
	stage(t, all[0], upgrade.StageReached, storesAsNew)
	all[2].Signal(t, syscall.SIGKILL)
	all[2].Wait(t, soon)
	wantVerb(t, all[0], 1, []string{"c2 does not answer", "nothing was changed"}, "back")
	wantVerb(t, all[0], 1, []string{"c2 does not answer"}, "finish")
	all[2] = m.start(t, 2)
	all[2].WaitReady(t)
	stage(t, all[1], upgrade.StageReached, answering)
	wantVerb(t, all[1], 0, []string{"validate", "enable", "run the old kthwd again on c0, then c1, then c2"}, "back")
	for i := range all {
		if i == 1 {
			stage(t, all[1], upgrade.StageReturning, answering)
		}
		m.replace(t, &all, i, previous)
	}
	kthwtest.WaitFor(t, "a write after the way back", soon, func() error { return write(t, client, "back") })

	for i := range all {
		m.replace(t, &all, i, "")
	}
	if u, err := upgradeStatus(t, all[0]); err == nil && u.Target != "" { // the old ones had too little time to end it
		wantVerb(t, all[0], 0, nil, "back", "--cancel")
	}
	for _, c := range []*kthwtest.Controller{all[0], all[2]} { // each hears the others for itself
		stage(t, c, upgrade.StageReached, func(c upgrade.Controller) bool { return storesAsNew(c) && answering(c) })
	}
	wantVerb(t, all[2], 0, []string{"finished", "restart c0, then c1, then c2"}, "finish")
	stage(t, all[0], upgrade.StageFinishing, nil)
	m.replace(t, &all, 0, "") // the others would only take the same step once more
	emulated := func(c upgrade.Controller) bool { return c.Restart == (c.Name != "c0") && answering(c) }
	stage(t, all[0], upgrade.StageFinishing, emulated)
	wantVerb(t, all[0], 1, []string{"the upgrade is finished"}, "back")
	w.stop()
	w.check(t)
}
