package fault

import (
	"bytes"
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// kube-scheduler ends its process when a pod moves from one node to another,
// which the API server never lets happen (pkg/scheduler/backend/cache/cache.go:
// UpdatePod). Somebody who writes into etcd can: a real way from outside to a
// klog.FlushAndExit in upstream's code.
func TestFatalInUpstreamCode(t *testing.T) {
	t.Parallel()
	c := kthwtest.Start(t, kthwtest.Options{})
	client := c.Client(t)
	kthwtest.WaitFor(t, "the scheduler leading", soon, func() error { return isLeading(c, sched) })
	kthwtest.WaitFor(t, "a pod", soon, func() error {
		p := pod("moved")
		p.Spec.NodeName = "node-aaaa"
		_, err := client.CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "moved"}, Spec: p.Spec}, metav1.CreateOptions{})
		return err
	})
	rewrite(t, c, "/registry/pods/default/moved", "node-aaaa", "node-bbbb")

	if got := c.Wait(t, soon); got != 1 {
		t.Errorf("got exit code %d, want 1", got)
	}
	o := outcome{c.Cmd.ProcessState.ExitCode(), c.Log.String()}
	problems, _ := o.errorLines()
	t.Logf("what a person reads: %s", strings.Join(problems, "\n"))
	if len(problems) != 1 || !strings.HasPrefix(problems[0], "kube-scheduler: upstream code wanted to exit the process with code 1, at ") || !strings.Contains(problems[0], "cache.go:") {
		t.Errorf("got errors %q, want one that says who wanted to exit, and where", problems)
	}
	if trace.MatchString(o.stderr) {
		t.Error("got a stack trace, want none")
	}
	for _, name := range []string{kcm, "kube-apiserver", "etcd"} {
		if !strings.Contains(o.stderr, "component="+name+" msg=stopped ") {
			t.Errorf("%s was not stopped in order", name)
		}
	}
	if t.Failed() {
		t.Logf("log:\n%s", o.stderr)
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
