package bench

import (
	"compress/gzip"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"golang.org/x/sync/errgroup"
)

const (
	listCount = 1000
	listSpace = "bench-list" // the namespace with the 1000 ConfigMaps that are read
	makeSpace = "bench-make" // the namespace with those that are created and deleted
)

// payload is 1 KiB that does not compress much.
var payload = func() string {
	text := ""
	for len(text) < 1024 {
		text += rand.Text()
	}
	return text[:1024]
}()

// measureThroughput creates, reads, lists and deletes ConfigMaps, each for the
// same time, with 32 clients at once.
func measureThroughput(t *testing.T, b *bench, p *plane, round int) {
	l := newLoad(t, p)
	for _, part := range l.parts() {
		b.results.add(part.metric, p.side, round, b.phase(t, l.clients, part.do))
	}
	cleanMaps(t, l.clients, l.remove)
}

// load is what 32 clients do with the ConfigMaps of one control plane. A client has made and
// deleted the first ones of its own, in order.
type load struct {
	clients       []*kubernetes.Clientset
	made, deleted [workers]int
}

func newLoad(t *testing.T, p *plane) *load {
	t.Helper()
	l := &load{clients: p.clients(t, workers)}
	p.awaitServiceAccount(t, l.clients[0])
	prepareMaps(t, l.clients)
	return l
}

// loadPart is one operation and the metric of its rate.
type loadPart struct {
	metric *metric
	do     operation
}

// parts are in the order in which they are measured: what one makes, the last one deletes.
func (l *load) parts() []loadPart {
	return []loadPart{{metricCreate, l.create}, {metricGet, l.get}, {metricList, l.list}, {metricDelete, l.remove}}
}

func (l *load) create(ctx context.Context, c *kubernetes.Clientset, w, _ int) (bool, error) {
	_, err := c.CoreV1().ConfigMaps(makeSpace).Create(ctx, configMap(madeName(w, l.made[w])), metav1.CreateOptions{})
	l.made[w]++
	return true, err
}

func (l *load) get(ctx context.Context, c *kubernetes.Clientset, _, _ int) (bool, error) {
	_, err := c.CoreV1().ConfigMaps(listSpace).Get(ctx, listName(mathrand.IntN(listCount)), metav1.GetOptions{})
	return true, err
}

func (l *load) list(ctx context.Context, c *kubernetes.Clientset, _, i int) (bool, error) {
	return true, readList(ctx, c, i == 0)
}

func (l *load) remove(ctx context.Context, c *kubernetes.Clientset, w, _ int) (bool, error) {
	if l.deleted[w] == l.made[w] {
		return false, nil
	}
	err := c.CoreV1().ConfigMaps(makeSpace).Delete(ctx, madeName(w, l.deleted[w]), metav1.DeleteOptions{})
	l.deleted[w]++
	return true, err
}

// readList reads a list to its end, compressed as it comes: what unpacking costs
// is the client's. The first one of each client is unpacked and looked at.
func readList(ctx context.Context, c *kubernetes.Clientset, look bool) error {
	body, err := c.CoreV1().RESTClient().Get().Namespace(listSpace).Resource("configmaps").
		SetHeader("Accept-Encoding", "gzip").Stream(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	if !look {
		_, err := io.Copy(io.Discard, body)
		return err
	}
	unpacked, err := gzip.NewReader(body)
	if err != nil {
		return err
	}
	size, err := io.Copy(io.Discard, unpacked)
	if err == nil && size < listCount*int64(len(payload)) {
		err = fmt.Errorf("a list of %d bytes", size)
	}
	return err
}

// operation does one request as client number w, its i-th; false: nothing left to do.
type operation func(ctx context.Context, c *kubernetes.Clientset, w, i int) (bool, error)

// phase repeats an operation with all clients for the time of a phase and
// returns how many were done in a second.
func (b *bench) phase(t *testing.T, clients []*kubernetes.Clientset, do operation) float64 {
	t.Helper()
	begin := time.Now()
	done, err := repeat(within(t, b.phaseTime+startBudget), clients, begin.Add(b.phaseTime), do)
	if err != nil {
		t.Fatal(err)
	}
	return float64(done) / time.Since(begin).Seconds()
}

// repeat ends at deadline or when all operations say that nothing is left.
func repeat(ctx context.Context, clients []*kubernetes.Clientset, deadline time.Time, do operation) (int64, error) {
	var done atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for w, c := range clients {
		g.Go(func() error {
			for i := 0; time.Now().Before(deadline); i++ {
				more, err := do(ctx, c, w, i)
				if err != nil || !more {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	err := g.Wait()
	return done.Load(), err
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"payload": payload}}
}

func listName(i int) string    { return fmt.Sprintf("list-%04d", i) }
func madeName(w, i int) string { return fmt.Sprintf("made-%02d-%06d", w, i) }

// prepareMaps makes the namespaces and what is read, and so connects all clients.
func prepareMaps(t *testing.T, clients []*kubernetes.Clientset) {
	t.Helper()
	ctx := within(t, time.Minute)
	for _, name := range []string{listSpace, makeSpace} {
		space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := clients[0].CoreV1().Namespaces().Create(ctx, space, metav1.CreateOptions{}); err != nil {
			t.Fatalf("create namespace: %v", err)
		}
	}
	if err := each(clients, listCount, func(c *kubernetes.Clientset, i int) error {
		_, err := c.CoreV1().ConfigMaps(listSpace).Create(ctx, configMap(listName(i)), metav1.CreateOptions{})
		return err
	}); err != nil {
		t.Fatalf("create ConfigMaps: %v", err)
	}
}

// cleanMaps removes what is left, so that the next part does not work beside it.
func cleanMaps(t *testing.T, clients []*kubernetes.Clientset, remove operation) {
	t.Helper()
	ctx := within(t, 2*time.Minute)
	if _, err := repeat(ctx, clients, time.Now().Add(time.Minute), remove); err != nil {
		t.Fatalf("delete ConfigMaps: %v", err)
	}
	if err := each(clients, listCount, func(c *kubernetes.Clientset, i int) error {
		return c.CoreV1().ConfigMaps(listSpace).Delete(ctx, listName(i), metav1.DeleteOptions{})
	}); err != nil {
		t.Fatalf("delete ConfigMaps: %v", err)
	}
}
