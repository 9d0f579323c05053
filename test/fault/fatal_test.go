package fault

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// kube-scheduler ends its process when a pod moves from one node to another,
// which the API server never lets happen (pkg/scheduler/backend/cache/cache.go:
// UpdatePod). Somebody who writes into etcd can: a real way from outside to a
// klog.FlushAndExit in upstream's code, on a goroutine that client-go started.
func TestFatalInUpstreamCode(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{})
	client := c.Client(t)
	kthwtest.WaitFor(t, "the scheduler leading", soon, func() error { return isLeading(c, sched) })
	kthwtest.WaitFor(t, "a pod", soon, func() error {
		p := pod("moved")
		p.Spec.NodeName = "node-aaaa"
		_, err := client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "moved"}, Spec: p.Spec}, metav1.CreateOptions{})
		return err
	})
	calm := watchCalm(t, c)
	rewrite(t, c, "/registry/pods/default/moved", "node-aaaa", "node-bbbb")

	kthwtest.WaitFor(t, "a term that ended by an exit", soon, func() error { return exits(c, sched, 1) })
	saysWhy(t, c, sched, "Pod updated on a different node than previously added to")
	kthwtest.WaitFor(t, "the scheduler leading again", soon, func() error { return isLeading(c, sched) })
	fakeNode(t, client)
	createPod(t, client, "after")
	kthwtest.WaitFor(t, "a pod to be bound by the new term", soon, func() error {
		p, err := client.CoreV1().Pods("default").Get(t.Context(), "after", metav1.GetOptions{})
		if err == nil && p.Spec.NodeName == "" {
			err = errors.New("not bound")
		}
		return err
	})
	calm.check(t)
	for _, name := range []string{kcm, "kube-apiserver", "etcd"} {
		lasts(t, c, name)
	}
	stop(t, c, syscall.SIGTERM, 0)
	if trace.MatchString(c.Log.String()) {
		t.Error("got a stack trace, want none")
	}
}

// rewrite changes a stored object in etcd itself, with a text of the same length.
func rewrite(t *testing.T, c *kthwtest.Controller, key, was, is string) {
	t.Helper()
	etcd := c.Etcd(t)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	got, err := etcd.Get(ctx, key)
	if err != nil || len(got.Kvs) != 1 || !bytes.Contains(got.Kvs[0].Value, []byte(was)) {
		t.Fatalf("read %s: %v, %v; want an object with %s in it", key, got, err, was)
	}
	changed := bytes.ReplaceAll(got.Kvs[0].Value, []byte(was), []byte(is))
	if _, err := etcd.Put(ctx, key, string(changed)); err != nil {
		t.Fatal(err)
	}
}
