package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"kthwd/appliance/supervise"
	"kthwd/test/kthwtest"
)

const (
	losses        = 5
	leaseDuration = 4 * time.Second
	goroutineRoom = 60 // requests in flight come and go; idle connections close after 90 s
)

// quickLeases make a term end within seconds of its lease's loss.
func quickLeases() (args []string) {
	for _, program := range []string{kcm, sched} {
		for _, setting := range []string{"lease-duration=" + leaseDuration.String(), "renew-deadline=2s", "retry-period=400ms"} {
			args = append(args, "--"+program+"-arg=leader-elect-"+setting)
		}
	}
	return args
}

// A lost lease ends the term of that one component. The process, etcd, the API
// server and their clients do not notice.
func TestLeaseLoss(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{Args: quickLeases()})
	client := c.Client(t)
	for _, name := range []string{kcm, sched} {
		kthwtest.WaitFor(t, name+" leading", soon, func() error { return isLeading(c, name) })
	}
	pid := c.Cmd.Process.Pid
	fakeNode(t, client)
	leases, pods := watchLeases(t, client), watchPods(t, client)
	calm := watchCalm(t, c)

	// The first loss of each warms up what is made once; the count begins after it.
	rob(t, c, client, 1, leases, pods)
	before, err := goroutines(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	rob(t, c, client, losses-1, leases, pods)

	kthwtest.WaitFor(t, "no more goroutines than before", 3*time.Minute, func() error {
		now, err := goroutines(t.Context(), client)
		if err == nil && now > before+goroutineRoom {
			err = fmt.Errorf("got %d, want %d and at most %d more", now, before, goroutineRoom)
		}
		if err == nil {
			t.Logf("goroutines: %d after one loss of each, %d after %d", before, now, losses)
		}
		return err
	})
	calm.check(t)
	r, err := c.Status()
	if err != nil || r.PID != pid || c.Exited() {
		t.Errorf("got process %d (%v), want %d as before", r.PID, err, pid)
	}
	for _, s := range r.Components {
		want := 0
		if s.Name == kcm || s.Name == sched {
			want = losses
		}
		if s.Restarts != want {
			t.Errorf("%s: got %d restarts, want %d", s.Name, s.Restarts, want)
		}
	}
}

// rob takes the leases of both components away n times, side by side.
func rob(t *testing.T, c *kthwtest.Controller, client kubernetes.Interface, n int, leases *leaseLog, pods *podLog) {
	t.Run("", func(t *testing.T) {
		for _, v := range []victim{
			{kcm, func(t *testing.T, name string) { createReplicaSet(t, client, name) }, pods.created},
			{sched, func(t *testing.T, name string) { createPod(t, client, name) }, pods.bound},
		} {
			t.Run(v.component, func(t *testing.T) {
				t.Parallel()
				for range n {
					v.rob(t, c, client, leases)
				}
			})
		}
	})
}

// victim is a component, something that makes work for it, and the revision at
// which it has done that work: 0 for not yet.
type victim struct {
	component string
	make      func(t *testing.T, name string)
	done      func(name string) int64
}

var round atomic.Int64

// rob takes the lease once, gives it back, and checks that the component did
// nothing in between.
func (v victim) rob(t *testing.T, c *kthwtest.Controller, client kubernetes.Interface, leases *leaseLog) {
	was, err := component(c, v.component)
	if err != nil {
		t.Fatal(err)
	}
	hold := func(what string, cond func(supervise.Status) error) {
		t.Helper()
		kthwtest.WaitFor(t, what, soon, func() error {
			if err := setHolder(t.Context(), client, v.component, "thief"); err != nil {
				return err
			}
			s, err := component(c, v.component)
			if err != nil {
				return err
			}
			return cond(s)
		})
	}
	hold(v.component+"'s term to end", func(s supervise.Status) error {
		if s.Restarts != was.Restarts+1 {
			return fmt.Errorf("%d restarts, %s: %s", s.Restarts, s.State, s.Reason)
		}
		if s.LastError != "lease lost" {
			t.Errorf("%s: last error: got %q, want %q", v.component, s.LastError, "lease lost")
		}
		return nil
	})
	probe := fmt.Sprintf("probe-%d", round.Add(1))
	v.make(t, probe)
	hold(v.component+" standby", func(s supervise.Status) error {
		if s.State != supervise.Standby || s.Reason != "lease held by thief" {
			return fmt.Errorf("%s: %s", s.State, s.Reason)
		}
		return nil
	})
	if at := v.done(probe); at != 0 {
		t.Errorf("%s acted for %s at revision %d, without the lease", v.component, probe, at)
	}
	if err := setHolder(t.Context(), client, v.component, ""); err != nil {
		t.Fatal(err)
	}
	kthwtest.WaitFor(t, v.component+" leading again", soon, func() error { return isLeading(c, v.component) })
	kthwtest.WaitFor(t, v.component+" working again", soon, func() error {
		if v.done(probe) == 0 {
			return errors.New("nothing done for " + probe)
		}
		return nil
	})
	if won, acted := leases.lastWon(v.component), v.done(probe); won == 0 || acted < won {
		t.Errorf("%s acted for %s at revision %d, before it had the lease, at %d", v.component, probe, acted, won)
	}
}

// A leader whose clock is an hour ahead or behind is the leader for as long as it
// renews its lease, and no longer: kthwd looks at what others write, and measures how
// long ago that was by its own clock.
func TestLeaseOfAnotherClock(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{Args: quickLeases()})
	client := c.Client(t)
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		for _, name := range []string{kcm, sched} {
			kthwtest.WaitFor(t, name+" leading", soon, func() error { return isLeading(c, name) })
		}
		begun, since := time.Now(), time.Time{} // of the last renewal; and since when all was as it must be
		kthwtest.WaitFor(t, fmt.Sprintf("standby beside a leader whose clock is off by %v", jump), time.Minute, func() error {
			late := time.Since(begun) > leaseDuration/2 // this test's fault, on a busy machine
			err := standbyBeside(t.Context(), c, client, time.Now().Add(jump))
			begun = time.Now()
			switch {
			case err != nil && !late && !since.IsZero():
				t.Fatalf("beside a leader that renews, with a clock that is off by %v: %v", jump, err)
			case err != nil:
				since = time.Time{}
				return err
			case since.IsZero():
				since = begun
			}
			if left := 2*leaseDuration - time.Since(since); left > 0 {
				return fmt.Errorf("%v to go", left)
			}
			return nil
		})
		for _, name := range []string{kcm, sched} { // nobody renews any more
			kthwtest.WaitFor(t, name+" leading again", soon, func() error { return isLeading(c, name) })
		}
		if took := time.Since(begun); took < leaseDuration/2 {
			t.Errorf("a lease of %v that was renewed just now, by a clock that is off by %v, was taken after %v", leaseDuration, jump, took)
		}
	}
}

// standbyBeside renews both leases for a thief, by its clock, and wants kthwd to
// see that.
func standbyBeside(ctx context.Context, c *kthwtest.Controller, client kubernetes.Interface, now time.Time) error {
	for _, name := range []string{kcm, sched} {
		if err := setHolderAt(ctx, client, name, "thief", now); err != nil {
			return err
		}
		s, err := component(c, name)
		if err == nil && (s.State != supervise.Standby || s.Reason != "lease held by thief") {
			err = fmt.Errorf("%s is %s: %s", name, s.State, s.Reason)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// setHolder writes a lease that is fresh, in the name of holder; "" releases it.
func setHolder(ctx context.Context, client kubernetes.Interface, name, holder string) error {
	return setHolderAt(ctx, client, name, holder, time.Now())
}

// setHolderAt is setHolder by a clock that says now.
func setHolderAt(ctx context.Context, client kubernetes.Interface, name, holder string, now time.Time) error {
	leases := client.CoordinationV1().Leases("kube-system")
	lease, err := leases.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	lease.Spec.HolderIdentity = &holder
	lease.Spec.LeaseDurationSeconds = ptr.To(int32(leaseDuration / time.Second))
	lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(now))
	_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}

// leaseLog is when kthwd got each lease, in revisions of etcd.
type leaseLog struct {
	mu     sync.Mutex
	holder map[string]string
	won    map[string]int64
}

func watchLeases(t *testing.T, client kubernetes.Interface) *leaseLog {
	l := &leaseLog{holder: map[string]string{}, won: map[string]int64{}}
	follow(t, "leases", func(ctx context.Context) (watch.Interface, error) {
		return client.CoordinationV1().Leases("kube-system").Watch(ctx, metav1.ListOptions{})
	}, func(e watch.Event) {
		lease, ok := e.Object.(*coordinationv1.Lease)
		if !ok {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		holder := ptr.Deref(lease.Spec.HolderIdentity, "")
		if holder != l.holder[lease.Name] && strings.HasPrefix(holder, "c0_") {
			l.won[lease.Name] = revision(lease.ResourceVersion)
		}
		l.holder[lease.Name] = holder
	})
	return l
}

func (l *leaseLog) lastWon(name string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.won[name]
}

// podLog is at which revision each probe's pod was created and bound.
type podLog struct {
	mu               sync.Mutex
	createds, bounds map[string]int64
}

func watchPods(t *testing.T, client kubernetes.Interface) *podLog {
	l := &podLog{createds: map[string]int64{}, bounds: map[string]int64{}}
	follow(t, "pods", func(ctx context.Context) (watch.Interface, error) {
		return client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
	}, func(e watch.Event) {
		pod, ok := e.Object.(*corev1.Pod)
		if !ok {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		name, at := pod.Labels["probe"], revision(pod.ResourceVersion)
		if l.createds[name] == 0 {
			l.createds[name] = at
		}
		if l.bounds[name] == 0 && pod.Spec.NodeName != "" {
			l.bounds[name] = at
		}
	})
	return l
}

func (l *podLog) created(probe string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.createds[probe]
}

func (l *podLog) bound(probe string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bounds[probe]
}

func revision(resourceVersion string) (at int64) {
	_, _ = fmt.Sscan(resourceVersion, &at)
	return at
}

// follow hands the events of a watch to see until the test ends. The watch has
// to stay connected for as long.
func follow(t *testing.T, what string, open func(context.Context) (watch.Interface, error), see func(watch.Event)) {
	t.Helper()
	w, err := open(t.Context())
	if err != nil {
		t.Fatalf("watch %s: %v", what, err)
	}
	stopping := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					if t.Context().Err() == nil { // else the test is over
						t.Errorf("the watch of %s was cut", what)
					}
					return
				}
				see(e)
			case <-stopping:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stopping); w.Stop(); <-gone })
}

func pod(name string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"probe": name}},
		Spec: corev1.PodSpec{
			Containers:  []corev1.Container{{Name: "none", Image: "none"}},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
}

func createReplicaSet(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	_, err := client.AppsV1().ReplicaSets("default").Create(t.Context(), &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: ptr.To(int32(1)), Template: pod(name),
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"probe": name}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func createPod(t *testing.T, client kubernetes.Interface, name string) {
	t.Helper()
	// Admission asks for the account, which kube-controller-manager makes.
	kthwtest.WaitFor(t, "pod "+name, soon, func() error {
		p := pod(name)
		_, err := client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: p.Labels}, Spec: p.Spec,
		}, metav1.CreateOptions{})
		return err
	})
}

// fakeNode is a node that nobody runs; the probes' pods tolerate all its taints.
func fakeNode(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "fake"}}
	node.Status.Allocatable = corev1.ResourceList{"pods": resource.MustParse("110"), "cpu": resource.MustParse("4"), "memory": resource.MustParse("8Gi")}
	node.Status.Capacity = node.Status.Allocatable
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// calm is what must go on as if nothing was the matter.
type calm struct {
	stop    func()
	done    sync.WaitGroup
	written atomic.Int64
	seen    atomic.Int64

	mu       sync.Mutex
	problems []string
}

// watchCalm writes one object all the time, watches it, and asks 10257 and
// 10259 how they are.
func watchCalm(t *testing.T, c *kthwtest.Controller) *calm {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := &calm{stop: cancel}
	client := c.Client(t)
	object, err := client.CoreV1().ConfigMaps("default").Create(ctx, configMap("writer", map[string]string{"n": "0"}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=writer", ResourceVersion: object.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	m.done.Go(func() { m.watch(ctx, w) })
	m.done.Go(func() { m.write(ctx, client, object) })
	for name, port := range map[string]int{kcm: c.Ports.ControllerManager, sched: c.Ports.Scheduler} {
		m.done.Go(func() { m.ask(ctx, name, fmt.Sprintf("https://%s:%d/healthz", c.Address, port)) })
	}
	t.Cleanup(func() { cancel(); m.done.Wait() })
	return m
}

func (m *calm) problem(ctx context.Context, format string, args ...any) {
	if ctx.Err() != nil {
		return // the test is over
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problems = append(m.problems, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (m *calm) write(ctx context.Context, client kubernetes.Interface, object *corev1.ConfigMap) {
	for n := int64(1); ctx.Err() == nil; n++ {
		object.Data["n"] = fmt.Sprint(n)
		next, err := client.CoreV1().ConfigMaps("default").Update(ctx, object, metav1.UpdateOptions{})
		if err != nil {
			m.problem(ctx, "write %d: %v", n, err)
			return
		}
		object = next
		m.written.Store(n)
		pause(ctx, 5*time.Millisecond) // leave the two processors something
	}
}

func (m *calm) watch(ctx context.Context, w watch.Interface) {
	defer w.Stop()
	for n := int64(1); ctx.Err() == nil; n++ {
		e, ok := <-w.ResultChan()
		if !ok {
			m.problem(ctx, "the watch was cut after %d events", n-1)
			return
		}
		object, ok := e.Object.(*corev1.ConfigMap)
		if !ok || object.Data["n"] != fmt.Sprint(n) {
			m.problem(ctx, "event %d: got %s %v, want write %d", n, e.Type, e.Object, n)
			return
		}
		m.seen.Store(n)
	}
}

func (m *calm) ask(ctx context.Context, name, url string) {
	transport := insecure()
	for ctx.Err() == nil {
		code, body, err := ask(transport, url)
		if err != nil || code != http.StatusOK {
			m.problem(ctx, "%s: %s: got %d %s %v, want 200", name, url, code, body, err)
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// check ends it, and fails the test for all that went wrong.
func (m *calm) check(t *testing.T) {
	t.Helper()
	written := m.written.Load()
	kthwtest.WaitFor(t, "the watch to see all writes", soon, func() error {
		if seen := m.seen.Load(); seen < written {
			return fmt.Errorf("seen %d of %d", seen, written)
		}
		return nil
	})
	m.stop()
	m.done.Wait()
	for _, p := range m.problems {
		t.Error(p)
	}
	t.Logf("%d writes, each acknowledged and seen", written)
}
