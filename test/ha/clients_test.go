package ha

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

const (
	namespace = "ha" // of the objects that writers write

	writePause = 40 * time.Millisecond // between two writes of one writer
	patience   = time.Second           // of an impatient writer, with one attempt
	kept       = 20                    // objects of a creator
)

// clients work through the load balancer all the time.
type clients struct {
	objects typedcorev1.ConfigMapInterface // for the test itself
	gate    sync.RWMutex                   // held by each write; locked to have none
	stop    func()
	done    sync.WaitGroup

	mu       sync.Mutex
	acks     []ack
	problems []string
	watchers map[string]*watcher
}

// startClients starts four impatient writers and a patient one, three watchers,
// and what makes work for kube-controller-manager and kube-scheduler.
//
// An impatient writer gives an attempt one second, and the next attempt gets a
// new connection. The patient one is client-go as it comes, without a timeout.
func startClients(t *testing.T, c *cluster) *clients {
	t.Helper()
	admin, _ := c.client(t, "", 10*time.Second)
	if _, err := admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &clients{objects: admin.CoreV1().ConfigMaps(namespace), stop: cancel, watchers: map[string]*watcher{}}
	t.Cleanup(func() { cancel(); k.done.Wait() })
	for i := range 3 {
		client, _ := c.client(t, "", 0)
		w := &watcher{name: fmt.Sprint(i), objects: client.CoreV1().ConfigMaps(namespace)}
		k.watchers[w.name] = w
		k.done.Go(func() { w.run(ctx) })
	}
	for i := range 5 {
		w := &writer{clients: k, name: fmt.Sprintf("w%d", i), patient: i == 4}
		timeout := patience
		if w.patient {
			timeout = 0
		}
		var client kubernetes.Interface
		client, w.hangUp = c.client(t, "", timeout)
		w.objects, w.rest = client.CoreV1().ConfigMaps(namespace), client.CoreV1().RESTClient()
		step := w.count
		if i%2 == 1 {
			step = w.create
		}
		k.done.Go(func() { w.run(ctx, step) })
	}
	work, _ := c.client(t, "", 5*time.Second)
	k.done.Go(func() { makeWork(ctx, work) })
	return k
}

// problem is about the clients' own side.
func (k *clients) problem(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problems = append(k.problems, fmt.Sprintf(format, args...))
}

// takeProblems returns what has been noted, and forgets it.
func (k *clients) takeProblems() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	taken := k.problems
	k.problems = nil
	return taken
}

// since are the writes acknowledged from at on.
func (k *clients) since(at time.Time) []ack {
	k.mu.Lock()
	defer k.mu.Unlock()
	first := len(k.acks)
	for first > 0 && !k.acks[first-1].At.Before(at) {
		first--
	}
	return append([]ack(nil), k.acks[first:]...)
}

// longestWait is the longest time between two writes of one impatient writer that were both
// acknowledged from begin to end.
func (k *clients) longestWait(begin, end time.Time) (longest time.Duration) {
	last := map[string]time.Time{}
	for _, a := range k.since(begin) {
		if a.Patient || a.At.After(end) {
			continue
		}
		if before, ok := last[a.Writer]; ok {
			longest = max(longest, a.At.Sub(before))
		}
		last[a.Writer] = a.At
	}
	return longest
}

// pause waits until no write is under way and holds the next ones back until
// the function it returns is called.
func (k *clients) pause() (resume func()) {
	k.gate.Lock()
	return k.gate.Unlock
}

// writer writes one thing after the other, each until it is acknowledged.
type writer struct {
	*clients
	name    string
	patient bool
	hangUp  func()
	objects typedcorev1.ConfigMapInterface
	rest    rest.Interface

	n       int64
	tries   []string          // at the write that is under way
	made    []string          // at the first attempt, not deleted yet
	counter *corev1.ConfigMap // as it was acknowledged last
}

func (w *writer) run(ctx context.Context, step func(context.Context)) {
	for ctx.Err() == nil {
		w.gate.RLock()
		step(ctx)
		w.gate.RUnlock()
		sleep(ctx, writePause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// acknowledged notes a write that is done.
func (w *writer) acknowledged(begun time.Time, c change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acks = append(w.acks, ack{Writer: w.name, Patient: w.patient, Begun: begun, At: time.Now(), Failed: w.tries, change: c})
	w.tries = nil
}

// failed is between two attempts.
func (w *writer) failed(ctx context.Context, err error) {
	w.tries = append(w.tries, time.Now().Format(clock)+" "+err.Error())
	if !w.patient {
		w.hangUp()
	}
	sleep(ctx, 10*time.Millisecond)
}

// count raises the writer's counter by one. An attempt whose outcome is not known
// may still be applied, later: each has the resource version that it was made for,
// so that of all attempts at one step only one can be.
func (w *writer) count(ctx context.Context) {
	begun, tokens := time.Now(), map[string]bool{}
	for attempt := 1; ctx.Err() == nil; attempt++ {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: w.name}}
		if w.counter != nil {
			object = w.counter.DeepCopy()
		}
		token := fmt.Sprintf("%s/%d/%d", w.name, w.n+1, attempt)
		tokens[token] = true
		object.Data = map[string]string{"n": strconv.FormatInt(w.n+1, 10), "token": token}
		var got *corev1.ConfigMap
		var err error
		if w.counter == nil {
			got, err = w.objects.Create(ctx, object, metav1.CreateOptions{})
		} else {
			got, err = w.objects.Update(ctx, object, metav1.UpdateOptions{})
		}
		if err != nil {
			w.failed(ctx, err)
			if got, err = w.get(ctx, w.name); err != nil {
				w.failed(ctx, err)
				continue
			}
		}
		switch there := changeOf(got); {
		case there.N == w.n+1 && tokens[there.Token]:
			w.counter, w.n = got, w.n+1
			w.acknowledged(begun, there)
			return
		case there.N == w.n && w.counter != nil && there.Rev == changeOf(w.counter).Rev:
			// not applied, or not yet
		default:
			if ctx.Err() == nil {
				w.problem("writer %s: found %s, wanted its own write %d", w.name, there, w.n+1)
			}
			w.counter, w.n = got, there.N
			return
		}
	}
}

// create makes an object with a name of its own, and deletes an old one. An object
// that took more than one attempt stays: an attempt whose outcome is not known may
// still be carried out, and would find nothing in its way.
func (w *writer) create(ctx context.Context) {
	begun := time.Now()
	w.n++
	name := fmt.Sprintf("%s-%d", w.name, w.n)
	for attempt := 1; ctx.Err() == nil; attempt++ {
		token := fmt.Sprintf("%s/%d", name, attempt)
		got, err := w.objects.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": "1", "token": token},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // by an attempt whose answer was lost
			got, err = w.get(ctx, name)
		}
		if err == nil {
			w.acknowledged(begun, changeOf(got))
			if attempt == 1 {
				w.made = append(w.made, name)
			}
			break
		}
		w.failed(ctx, err)
	}
	if len(w.made) > kept {
		w.delete(ctx, w.made[0])
		w.made = w.made[1:]
	}
}

// get reads an object, once: by itself client-go tries again after a second when a
// connection broke, which is all the time that an impatient writer has.
func (w *writer) get(ctx context.Context, name string) (*corev1.ConfigMap, error) {
	var m corev1.ConfigMap
	r := w.rest.Get().Namespace(namespace).Resource("configmaps").Name(name)
	if !w.patient {
		r = r.MaxRetries(0)
	}
	return &m, r.Do(ctx).Into(&m)
}

func (w *writer) delete(ctx context.Context, name string) {
	begun := time.Now()
	for attempt := 1; ctx.Err() == nil; attempt++ {
		err := w.objects.Delete(ctx, name, metav1.DeleteOptions{})
		switch {
		case err == nil || attempt > 1 && apierrors.IsNotFound(err):
			w.acknowledged(begun, change{Key: name, Deleted: true})
			return
		case apierrors.IsNotFound(err):
			w.problem("writer %s: %s is gone before it was deleted", w.name, name)
			return
		}
		w.failed(ctx, err)
	}
}

// changeOf is what an object says of its last change.
func changeOf(m *corev1.ConfigMap) change {
	n, _ := strconv.ParseInt(m.Data["n"], 10, 64)
	return change{Rev: revision(m.ResourceVersion), Key: m.Name, N: n, Token: m.Data["token"]}
}

func revision(resourceVersion string) int64 {
	rev, _ := strconv.ParseInt(resourceVersion, 10, 64)
	return rev
}

// watcher follows all objects, as client-go's reflector does: it lists once, and
// resumes where the last watch ended.
type watcher struct {
	name    string
	objects typedcorev1.ConfigMapInterface

	mu     sync.Mutex
	events []seen
	at     int64  // revision of the last event
	resume string // from where the next watch goes on; empty: list first
}

func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := w.follow(ctx); err != nil {
			sleep(ctx, 50*time.Millisecond)
		}
	}
}

func (w *watcher) follow(ctx context.Context) error {
	if w.resume == "" {
		list, err := w.objects.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		found := []change{}
		for i := range list.Items {
			found = append(found, changeOf(&list.Items[i]))
		}
		w.note(seen{change: change{Rev: revision(list.ResourceVersion)}, Relisted: found})
		w.resume = list.ResourceVersion
	}
	events, err := w.objects.Watch(ctx, metav1.ListOptions{ResourceVersion: w.resume, AllowWatchBookmarks: true})
	if err != nil {
		return w.gone(err)
	}
	defer events.Stop()
	for e := range events.ResultChan() {
		if err := w.event(e); err != nil {
			return w.gone(err)
		}
	}
	return errors.New("the watch has ended")
}

// gone forgets where to resume when no API server still has the events after it.
func (w *watcher) gone(err error) error {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		w.resume = ""
	}
	return err
}

func (w *watcher) event(e watch.Event) error {
	m, ok := e.Object.(*corev1.ConfigMap)
	switch {
	case e.Type == watch.Error || !ok:
		return apierrors.FromObject(e.Object)
	case e.Type == watch.Bookmark:
	case e.Type == watch.Deleted:
		w.note(seen{change: change{Rev: revision(m.ResourceVersion), Key: m.Name, Deleted: true}})
	default:
		w.note(seen{change: changeOf(m)})
	}
	w.resume = m.ResourceVersion
	return nil
}

func (w *watcher) note(s seen) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, s)
	w.at = max(w.at, s.Rev)
}

// until waits until the watcher has come to a revision.
func (w *watcher) reached(rev int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at < rev {
		return fmt.Errorf("watcher %s is at revision %d, not yet at %d", w.name, w.at, rev)
	}
	return nil
}

// take returns what was seen until rev, forgets it, and counts how often the
// watcher had to list anew. A list that leads past rev belongs to what comes before
// when nothing else does: etcd's revision goes on with each lease, while the writers pause.
func (w *watcher) take(rev int64) (events []seen, relisted int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, at := 0, int64(0)
	for n < len(w.events) && (w.events[n].Rev <= rev || w.events[n].Relisted != nil && at < rev) {
		if w.events[n].Relisted != nil {
			relisted++
		}
		at = w.events[n].Rev
		n++
	}
	events, w.events = w.events[:n:n], append([]seen(nil), w.events[n:]...)
	return events, relisted
}
