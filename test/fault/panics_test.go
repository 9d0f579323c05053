package fault

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// oddObject is an object that the API would not accept, and whose controller panics over it. It
// comes into etcd past the API, as from a restore of somebody's or by etcdctl.
type oddObject struct {
	kind  string // for kubectl
	key   string // in etcd, below /registry
	json  string
	where string // part of the place of the panic
}

var oddObjects = []oddObject{
	{ // a metric of the type Resource without a resource
		kind: "horizontalpodautoscaler", key: "horizontalpodautoscalers/default/odd", where: "horizontal.go:",
		json: `{"apiVersion":"autoscaling/v2","kind":"HorizontalPodAutoscaler","metadata":{"name":"odd","namespace":"default","uid":"6f1e0cd4-0d8b-4f6a-a0e1-3d6f3c3c0001","creationTimestamp":"2026-01-02T03:04:05Z"},
			"spec":{"maxReplicas":3,"minReplicas":1,"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"target"},"metrics":[{"type":"Resource"}]}}`,
	},
	{ // an indexed job without a number of completions
		kind: "job", key: "jobs/default/odd", where: "indexed_job_utils.go:",
		json: `{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"odd","namespace":"default","uid":"6f1e0cd4-0d8b-4f6a-a0e1-3d6f3c3c0002","creationTimestamp":"2026-01-02T03:04:05Z"},
			"spec":{"parallelism":1,"backoffLimit":1,"completionMode":"Indexed","selector":{"matchLabels":{"job":"odd"}},
			"template":{"metadata":{"labels":{"job":"odd"}},"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}`,
	},
}

// A panic in a worker of a controller ends the term of kube-controller-manager, again and again,
// and nothing else: the object that sets it off can be deleted through the API.
func TestPanicEndsOneTerm(t *testing.T) {
	t.Parallel()
	for _, odd := range oddObjects {
		t.Run(odd.kind, func(t *testing.T) {
			kthwtest.Turn(t, 1)
			c := kthwtest.Start(t, kthwtest.Options{})
			client, pid := c.Client(t), c.Cmd.Process.Pid
			kthwtest.WaitFor(t, kcm+" working", soon, func() error { return works(t.Context(), client, "before") })
			c.Kubectl(t, "create", "deployment", "target", "--image=i")
			if _, err := c.Etcd(t).Put(t.Context(), "/registry/"+odd.key, odd.json); err != nil {
				t.Fatal(err)
			}
			kthwtest.WaitFor(t, "terms that ended by panics", 2*soon, func() error {
				if c.Exited() {
					t.Fatalf("the process has ended:\n%s", c.Log.Tail(5))
				}
				r, err := c.Status()
				if got := r.Restarts[kcm]["panic"]; err == nil && got < 2 {
					err = fmt.Errorf("got %d: %v", got, r.Restarts)
				}
				return err
			})
			s, err := component(c, kcm)
			for _, want := range []string{"panicked: ", "nil pointer", odd.where} {
				if err != nil || !strings.Contains(s.LastError, want) {
					t.Errorf("got last error %q, %v; want %q", s.LastError, err, want)
				}
			}
			if log := c.Log.String(); !strings.Contains(log, `msg="panic, the term ends" `) || !strings.Contains(log, "goroutine ") || strings.Contains(log, "crashes now") {
				t.Error("the log lacks the panic, or its stack, or says that the process crashes")
			}
			for _, name := range []string{"etcd", "kube-apiserver", sched} {
				lasts(t, c, name)
			}
			if err := write(t, client, "meanwhile"); err != nil {
				t.Errorf("the API server: %v", err)
			}
			c.Kubectl(t, "delete", odd.kind, "odd", "--wait=false")
			kthwtest.WaitFor(t, kcm+" ready again", 2*soon, func() error { return isLeading(c, kcm) })
			kthwtest.WaitFor(t, kcm+" works again", soon, func() error { return works(t.Context(), client, "shop") })
			r, err := c.Status()
			if err != nil || r.PID != pid || c.Exited() {
				t.Errorf("got process %d (%v), want %d as before", r.PID, err, pid)
			}
			if n, err := leaked(c); err != nil || n != 0 {
				t.Errorf("%d terms were left behind, %v; want none", n, err)
			}
			stop(t, c, syscall.SIGTERM, 0)
		})
	}
}
