package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/appliance/status"
	"kthwd/test/kthwtest"
)

// raw is an object that is made from JSON.
func raw(name, path, object, key string) switchable {
	return switchable{
		name: name,
		on: func(ctx context.Context, client kubernetes.Interface) error {
			return client.CoreV1().RESTClient().Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body([]byte(object)).Do(ctx).Error()
		},
		off: func(ctx context.Context, client kubernetes.Interface) error {
			return client.CoreV1().RESTClient().Delete().AbsPath(path + "/" + key).Do(ctx).Error()
		},
	}
}

// brokenAPIService is an API that discovery lists and nobody serves.
func brokenAPIService() switchable {
	return raw("APIService", "/apis/apiregistration.k8s.io/v1/apiservices", `{
		"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.broken.example.com"},
		"spec": {"group": "broken.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
			"insecureSkipTLSVerify": true, "service": {"namespace": "default", "name": "nobody"}}}`, "v1.broken.example.com")
}

// deadConversion is a resource with an object that cannot be read in its second version.
func deadConversion() switchable {
	const crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	s := raw("conversion", crds, `{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.dead.example.com"},
		"spec": {"group": "dead.example.com", "scope": "Cluster", "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
			"conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"url": "https://127.0.0.1:1/"}}},
			"versions": [
				{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}},
				{"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}`, "things.dead.example.com")
	on := s.on
	s.on = func(ctx context.Context, client kubernetes.Interface) error {
		if err := on(ctx, client); err != nil {
			return err
		}
		thing := raw("thing", "/apis/dead.example.com/v1/things", `{"apiVersion": "dead.example.com/v1", "kind": "Thing", "metadata": {"name": "one"}}`, "one")
		for ctx.Err() == nil { // until the resource is served
			if err := thing.on(ctx, client); err == nil || apierrors.IsAlreadyExists(err) {
				return nil
			}
			pause(ctx, 100*time.Millisecond)
		}
		return ctx.Err()
	}
	return s
}

// Webhooks, APIServices and resources with a dead conversion come and go in any order. The
// process lives, every write of somebody else's is accepted, and all works again when they
// are gone. The test makes a few rounds; make soak makes them for as long as it is told.
func TestSoakSwitches(t *testing.T) {
	kthwtest.Turn(t, 1)
	random, goesOn := switching(t)
	c := kthwtest.Start(t, kthwtest.Options{Args: quickLeases()})
	client, pid := c.Client(t), c.Cmd.Process.Pid
	writes := startSteadyWriter(t, client)
	all := []switchable{
		deadWebhook("refuses-tokens", tokens, admissionv1.Create),
		deadWebhook("refuses-leases", admissionv1.Rule{APIGroups: []string{"coordination.k8s.io"}, APIVersions: []string{"v1"}, Resources: []string{"leases"}}, admissionv1.Create, admissionv1.Update),
		deadWebhook("refuses-pods", admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods", "pods/*"}}, admissionv1.Create, admissionv1.Update),
		refusingPolicy("no-tokens"),
		brokenAPIService(),
		deadConversion(),
	}
	on := make([]bool, len(all))
	for n := 0; goesOn(n); n++ {
		i := random.IntN(len(all))
		flip(t, client, all[i], &on[i])
		if all[i].name == "webhook refuses-leases" && on[i] {
			kthwtest.WaitFor(t, "a lease to be lost", soon, func() error { return notLeading(c) })
		}
		writes.more(t, 20)
		if c.Exited() {
			t.Fatalf("round %d: the process has ended", n)
		}
	}
	for i := range all {
		if on[i] {
			flip(t, client, all[i], &on[i])
		}
	}
	for _, name := range []string{kcm, sched} {
		kthwtest.WaitFor(t, name+" leading again", 2*soon, func() error { return isLeading(c, name) })
	}
	kthwtest.WaitFor(t, kcm+" works again", soon, func() error { return works(t.Context(), client, "shop") })
	r, err := c.Status()
	if err != nil || r.PID != pid {
		t.Errorf("got process %d (%v), want %d as before", r.PID, err, pid)
	}
	// A controller that waits for a token, without a context, may need longer than the 10 s
	// that kube-controller-manager gives it; its term then counts as left behind.
	t.Logf("%d writes; restarts: %v; leases: %+v", writes.stop(t), r.Restarts, r.Leases)
	stop(t, c, syscall.SIGTERM, 0)
}

// switching returns the random numbers of this run, and how long it goes on.
func switching(t *testing.T) (random *rand.Rand, goesOn func(round int) bool) {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv("KTHWD_SOAK_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("KTHWD_SOAK_SEED=%d", seed)
	goesOn = func(round int) bool { return round < 8 }
	if length, err := time.ParseDuration(os.Getenv("KTHWD_SOAK")); err == nil {
		end := time.Now().Add(length)
		goesOn = func(int) bool { return time.Now().Before(end) }
	}
	return rand.New(rand.NewPCG(seed, 0)), goesOn
}

// flip switches s on or off. An earlier one may still be on its way out.
func flip(t *testing.T, client kubernetes.Interface, s switchable, on *bool) {
	t.Helper()
	t.Logf("%s: on %v", s.name, !*on)
	change := s.on
	if *on {
		change = s.off
	}
	unanswered := false // an attempt that may have done it
	kthwtest.WaitFor(t, s.name, soon, func() error {
		err := change(t.Context(), client)
		if *on && apierrors.IsNotFound(err) || unanswered && apierrors.IsAlreadyExists(err) {
			return nil
		}
		unanswered = unanswered || err != nil && !apierrors.IsAlreadyExists(err)
		return err
	})
	*on = !*on
}

// notLeading is nil when one of the two programs does not lead.
func notLeading(c *kthwtest.Controller) error {
	for _, name := range []string{kcm, sched} {
		s, err := component(c, name)
		if err != nil {
			return err
		}
		if !s.Healthy() {
			return nil
		}
	}
	return errors.New("both lead")
}

// steadyWriter writes one object again and again, and each write must be accepted.
type steadyWriter struct {
	written chan int // the number of writes so far, for whoever asks
	end     context.CancelFunc
	done    chan error
}

func startSteadyWriter(t *testing.T, client kubernetes.Interface) *steadyWriter {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &steadyWriter{written: make(chan int), end: cancel, done: make(chan error, 1)}
	if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, configMap("steady", map[string]string{"n": "0"}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	go func() { w.done <- w.write(ctx, client) }()
	t.Cleanup(cancel)
	return w
}

func (w *steadyWriter) write(ctx context.Context, client kubernetes.Interface) error {
	for n := 1; ; n++ {
		_, err := client.CoreV1().ConfigMaps("default").Update(ctx, configMap("steady", map[string]string{"n": fmt.Sprint(n)}), metav1.UpdateOptions{})
		if ctx.Err() != nil {
			return nil
		}
		if apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || err != nil && strings.HasSuffix(err.Error(), "etcdserver: request timed out") {
			continue // nobody has refused it: the machine had no time
		}
		if err != nil {
			return fmt.Errorf("write %d: %w", n, err)
		}
		select {
		case w.written <- n:
		case <-time.After(5 * time.Millisecond): // leave the processors something
		case <-ctx.Done():
		}
	}
}

// more waits for n further writes.
func (w *steadyWriter) more(t *testing.T, n int) (all int) {
	t.Helper()
	for range n {
		select {
		case all = <-w.written:
		case err := <-w.done:
			t.Fatalf("a write failed: %v", err)
		}
	}
	return all
}

// stop ends the writer and returns the number of its writes.
func (w *steadyWriter) stop(t *testing.T) int {
	t.Helper()
	all := w.more(t, 1)
	w.end()
	if err := <-w.done; err != nil {
		t.Error(err)
	}
	return all
}

// While kube-controller-manager exits wherever it leads, three controllers are restarted one
// after the other. The quorum stays, and no other process ends.
func rollingRestartAmongExits(t *testing.T, m *made, all *[3]*kthwtest.Controller) {
	cause := deadWebhook("refuses-tokens", tokens, admissionv1.Create)
	on := false
	flip(t, ownClient(t, all[0]), cause, &on)
	first := 0 // whoever leads keeps its tokens until it stops
	for i, c := range all {
		if isLeading(c, kcm) == nil {
			first = i
		}
	}
	for n := range all {
		i := (first + n) % len(all)
		before := all[i].Log
		if code := m.restart(t, all[:], i); code != 0 {
			t.Errorf("c%d: got exit code %d, want 0\n%s", i, code, before.Tail(30))
		}
		exits := allExits(t, all[:])
		kthwtest.WaitFor(t, "another exit", 2*soon, func() error {
			if now := allExits(t, all[:]); now <= exits {
				return fmt.Errorf("%d exits", now)
			}
			return nil
		})
	}
	flip(t, ownClient(t, all[0]), cause, &on)
	kthwtest.WaitFor(t, kcm+" works again", 2*soon, func() error { return works(t.Context(), ownClient(t, all[0]), "shop") })
	for _, c := range all {
		c.WaitReady(t)
		for _, l := range mustStatus(t, c).Leases {
			if l.Leaked > 0 {
				t.Errorf("%s: %d terms could not be stopped", l.Name, l.Leaked)
			}
		}
	}
	t.Logf("%d exits after the last restart of each", allExits(t, all[:]))
}

// restart stops controller i and starts it again. Meanwhile the others keep their processes
// and their quorum, and accept writes.
func (m *made) restart(t *testing.T, all []*kthwtest.Controller, i int) (code int) {
	t.Helper()
	others := []*kthwtest.Controller{all[(i+1)%3], all[(i+2)%3]}
	all[i].Signal(t, syscall.SIGTERM)
	code = all[i].Wait(t, soon)
	for n, c := range others {
		client := ownClient(t, c)
		kthwtest.WaitFor(t, "a write without c"+fmt.Sprint(i), soon, func() error { return write(t, client, fmt.Sprintf("without-%d-%d", i, n)) })
	}
	all[i] = m.start(t, i)
	all[i].WaitReady(t)
	for _, c := range others {
		if r := mustStatus(t, c); r.PID != c.Cmd.Process.Pid || c.Exited() {
			t.Errorf("%s while c%d was restarted: got process %d, want %d", c.Address, i, r.PID, c.Cmd.Process.Pid)
		}
		kthwtest.WaitFor(t, "a leader, as "+c.Address+" knows it", soon, func() error { _, err := leaderOf(c); return err })
	}
	return code
}

// allExits is the number of terms in all running processes that exits have ended.
func allExits(t *testing.T, all []*kthwtest.Controller) (n int) {
	t.Helper()
	for _, c := range all {
		n += mustStatus(t, c).Restarts[kcm]["exit"]
	}
	return n
}

func mustStatus(t *testing.T, c *kthwtest.Controller) status.Report {
	t.Helper()
	r, err := c.Status()
	if err != nil {
		t.Fatal(err)
	}
	return r
}
