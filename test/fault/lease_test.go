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
	leaseDuration = 8 * time.Second // with 4 s a busy machine took leases away by itself, one after another
	goroutineRoom = 60              // requests in flight come and go; idle connections close after 90 s
)

// quickLeases make a term end within seconds of its lease's loss.
func quickLeases() (args []string) {
	for _, program := range []string{kcm, sched} {
		for _, setting := range []string{"lease-duration=" + leaseDuration.String(), "renew-deadline=5s", "retry-period=400ms"} {
			args = append(args, "--"+program+"-arg=leader-elect-"+setting)
		}
	}
	return args
}

// A lost lease ends the term of that one component. The process, etcd, the API
// server and their clients do not notice.
func TestLeaseLoss(t *testing.T) {
	kthwtest.Turn(t, 1)
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

	kthwtest.WaitFor(t, "no more goroutines than before", 5*time.Minute, func() error {
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
		// A term that failed by itself, on a busy machine, has given its lease back.
		stolen, givenBack := leases.lost(s.Name)
		if s.Restarts != stolen+givenBack {
			t.Errorf("%s: got %d restarts, want %d: the lease was taken away %d times, and given back %d times", s.Name, s.Restarts, stolen+givenBack, stolen, givenBack)
		}
		if (s.Name == kcm || s.Name == sched) && stolen < losses {
			t.Errorf("%s: its lease was taken away %d times, want %d", s.Name, stolen, losses)
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
	thief := steal(t, client, v.component, 0)
	kthwtest.WaitFor(t, v.component+"'s term to end", soon, func() error {
		s, err := component(c, v.component)
		if err == nil && (s.Restarts <= was.Restarts || s.LastError == "") {
			err = fmt.Errorf("%d restarts, %s: %s, last error %q", s.Restarts, s.State, s.Reason, s.LastError)
		}
		if err == nil && s.LastError != "lease lost" { // it may fail by itself first
			t.Logf("%s: last error: %s", v.component, s.LastError)
		}
		return err
	})
	probe := fmt.Sprintf("probe-%d", round.Add(1))
	v.make(t, probe)
	kthwtest.WaitFor(t, v.component+" standby", soon, func() error { return isStandby(c, v.component) })
	thief.giveBack(t)
	kthwtest.WaitFor(t, v.component+" leading again", soon, func() error { return isLeading(c, v.component) })
	kthwtest.WaitFor(t, v.component+" working again", soon, func() error {
		if v.done(probe) == 0 {
			return errors.New("nothing done for " + probe)
		}
		return nil
	})
	acted := v.done(probe)
	kthwtest.WaitFor(t, fmt.Sprintf("the lease of %s to be renewed after revision %d", v.component, acted), soon, func() error {
		if seen := leases.seen(v.component); seen < acted {
			return fmt.Errorf("the last change was at %d", seen)
		}
		return nil
	})
	if holder := leases.holderAt(v.component, acted); !isOurs(holder) {
		t.Errorf("%s acted for %s at revision %d, when the lease was held by %q", v.component, probe, acted, holder)
	}
}

// A leader whose clock is an hour ahead or behind is the leader for as long as it
// renews its lease, and no longer: kthwd looks at what others write, and measures how
// long ago that was by its own clock.
func TestLeaseOfAnotherClock(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: quickLeases()})
	client := c.Client(t)
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		for _, name := range []string{kcm, sched} {
			kthwtest.WaitFor(t, name+" leading", soon, func() error { return isLeading(c, name) })
		}
		thieves := map[string]*thief{kcm: steal(t, client, kcm, jump), sched: steal(t, client, sched, jump)}
		for name, thief := range thieves {
			kthwtest.WaitFor(t, name+" standby", soon, func() error { return isStandby(c, name) })
			thief.count.Store(0)
		}
		// For as long as two leases; the thief itself looks whether its lease is taken too soon.
		enough := int64(2 * leaseDuration / renewEach)
		kthwtest.WaitFor(t, fmt.Sprintf("standby beside a leader whose clock is off by %v", jump), soon, func() error {
			for name, thief := range thieves {
				if err := isStandby(c, name); err != nil && thief.late.Load() == 0 {
					t.Fatalf("beside a leader that renews, with a clock that is off by %v: %v", jump, err)
				} else if err != nil {
					return err
				}
			}
			if n := min(thieves[kcm].count.Load(), thieves[sched].count.Load()); n < enough {
				return fmt.Errorf("%d renewals to go", enough-n)
			}
			return nil
		})
		for _, thief := range thieves {
			thief.stop() // nobody renews
		}
		for name, thief := range thieves {
			kthwtest.WaitFor(t, name+" leading again", soon, func() error { return isLeading(c, name) })
			if took := time.Since(thief.renewed()); took < leaseDuration/2 {
				t.Errorf("%s took a lease of %v, renewed by a clock that is off by %v, after %v", name, leaseDuration, jump, took)
			}
		}
	}
}

// isStandby is nil when the component says that the thief holds its lease.
func isStandby(c *kthwtest.Controller, name string) error {
	s, err := component(c, name)
	if err == nil && (s.State != supervise.Standby || s.Reason != "lease held by thief") {
		err = fmt.Errorf("%s is %s: %s", name, s.State, s.Reason)
	}
	return err
}

// renewEach is the thief's: a fraction of the lease, so that one late renewal loses nothing.
const renewEach = 100 * time.Millisecond

// thief holds the lease of a component, and renews it in a goroutine of its own.
type thief struct {
	client kubernetes.Interface
	name   string
	jump   time.Duration // of its clock
	stop   func()        // ends the renewals; the lease stays as it is

	count atomic.Int64
	sent  atomic.Pointer[time.Time] // when the last renewal that succeeded was sent
	late  atomic.Int64              // times that its lease ran out, on a busy machine
}

// steal takes the lease of a component away, and again whenever it has run out.
func steal(t *testing.T, client kubernetes.Interface, name string, jump time.Duration) *thief {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	h := &thief{client: client, name: name, jump: jump, stop: func() { cancel(); done.Wait() }}
	t.Cleanup(h.stop)
	done.Go(func() {
		for ctx.Err() == nil {
			if err := h.renew(ctx); err != nil {
				t.Error(err)
			}
			pause(ctx, renewEach)
		}
	})
	return h
}

// renew writes the lease once. What it returns is a fault of kthwd's; a conflict with
// kthwd's own writes is none.
func (h *thief) renew(ctx context.Context) error {
	lease, err := h.client.CoordinationV1().Leases("kube-system").Get(ctx, h.name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	found := time.Now()
	if holder, sent := ptr.Deref(lease.Spec.HolderIdentity, ""), h.sent.Load(); sent != nil && holder != "thief" {
		h.sent.Store(nil)
		h.late.Add(1)
		if held := found.Sub(*sent); held < leaseDuration/2 {
			return fmt.Errorf("%s: %q has a lease of %v, which the thief renewed %v before", h.name, holder, leaseDuration, held)
		}
	}
	lease.Spec.HolderIdentity = ptr.To("thief")
	lease.Spec.LeaseDurationSeconds = ptr.To(int32(leaseDuration / time.Second))
	sent := time.Now()
	lease.Spec.RenewTime = ptr.To(metav1.NewMicroTime(sent.Add(h.jump)))
	if _, err := h.client.CoordinationV1().Leases("kube-system").Update(ctx, lease, metav1.UpdateOptions{}); err == nil {
		h.sent.Store(&sent)
		h.count.Add(1)
	}
	return nil
}

// renewed is when the last renewal that succeeded was sent; zero if the lease ran out since.
func (h *thief) renewed() time.Time {
	if sent := h.sent.Load(); sent != nil {
		return *sent
	}
	return time.Time{}
}

// giveBack ends the renewals, and frees the lease unless kthwd has it.
func (h *thief) giveBack(t *testing.T) {
	t.Helper()
	h.stop()
	kthwtest.WaitFor(t, "the lease of "+h.name+" to be given back", soon, func() error {
		lease, err := h.client.CoordinationV1().Leases("kube-system").Get(t.Context(), h.name, metav1.GetOptions{})
		if err != nil || ptr.Deref(lease.Spec.HolderIdentity, "") != "thief" {
			return err
		}
		lease.Spec.HolderIdentity = ptr.To("")
		_, err = h.client.CoordinationV1().Leases("kube-system").Update(t.Context(), lease, metav1.UpdateOptions{})
		return err
	})
}

// leaseLog is who held each lease, by revisions of etcd.
type leaseLog struct {
	mu      sync.Mutex
	changes map[string][]leaseChange
}

type leaseChange struct {
	revision int64
	holder   string
}

// isOurs tells whether a holder is kthwd.
func isOurs(holder string) bool { return strings.HasPrefix(holder, "c0_") }

func watchLeases(t *testing.T, client kubernetes.Interface) *leaseLog {
	l := &leaseLog{changes: map[string][]leaseChange{}}
	follow(t, "leases", func(ctx context.Context) (watch.Interface, error) {
		return client.CoordinationV1().Leases("kube-system").Watch(ctx, metav1.ListOptions{})
	}, func(e watch.Event) {
		lease, ok := e.Object.(*coordinationv1.Lease)
		if !ok {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changes[lease.Name] = append(l.changes[lease.Name], leaseChange{revision(lease.ResourceVersion), ptr.Deref(lease.Spec.HolderIdentity, "")})
	})
	return l
}

// seen is the revision of the last change.
func (l *leaseLog) seen(name string) (at int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.changes[name] {
		at = c.revision
	}
	return at
}

// holderAt is who held the lease at a revision.
func (l *leaseLog) holderAt(name string, revision int64) (holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.changes[name] {
		if c.revision < revision {
			holder = c.holder
		}
	}
	return holder
}

// lost is how often kthwd's lease was taken away, and how often it was given back.
func (l *leaseLog) lost(name string) (stolen, givenBack int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := ""
	for _, c := range l.changes[name] {
		switch {
		case isOurs(before) && c.holder == "thief":
			stolen++
		case isOurs(before) && c.holder == "":
			givenBack++
		}
		before = c.holder
	}
	return stolen, givenBack
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
		m.done.Go(func() { m.ask(ctx, c, name, fmt.Sprintf("https://%s:%d/healthz", c.Address, port)) })
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

// overdue is how long a component may be on its way back before its port says so (controllers.Alive).
const overdue = 20 * time.Second

func (m *calm) ask(ctx context.Context, c *kthwtest.Controller, name, url string) {
	transport := insecure()
	late := func() bool { // a machine may be too busy for a term to begin within that time
		s, err := component(c, name)
		return err == nil && s.State == supervise.Starting && time.Since(s.Since) > overdue
	}
	wasLate := false
	for ctx.Err() == nil {
		code, body, err := ask(transport, url)
		fine := err == nil && code == http.StatusOK
		isLate := !fine && strings.Contains(body, "[-]leaderElection failed") && late()
		if !fine && !isLate && !wasLate { // it may have come back in between
			m.problem(ctx, "%s: %s: got %d %s %v, want 200", name, url, code, body, err)
		}
		wasLate = isLate
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
