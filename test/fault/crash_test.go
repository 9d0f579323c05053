package fault

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

// longLeases make a lease that nobody gave back last longer than any wait of a test:
// a component that leads has taken up its own lease, or one that was given back.
func longLeases() (args []string) {
	for _, program := range []string{kcm, sched} {
		args = append(args, "--"+program+"-arg=leader-elect-lease-duration=1h")
	}
	return args
}

// writers create objects as fast as they are acknowledged.
type writers struct {
	stop func()
	done sync.WaitGroup
	n    atomic.Int64

	mu           sync.Mutex
	acknowledged []string
}

var generation atomic.Int64

func startWriters(t *testing.T, client kubernetes.Interface, count int) *writers {
	ctx, cancel := context.WithCancel(t.Context())
	w := &writers{stop: cancel}
	life := generation.Add(1)
	for i := range count {
		w.done.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("w-%d-%d-%d", life, i, n)
				if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, configMap(name, nil), metav1.CreateOptions{}); err != nil {
					return // the end has come
				}
				w.mu.Lock()
				w.acknowledged = append(w.acknowledged, name)
				w.mu.Unlock()
				w.n.Add(1)
			}
		})
	}
	t.Cleanup(func() { cancel(); w.done.Wait() })
	return w
}

// until waits for n acknowledged writes.
func (w *writers) until(t *testing.T, n int64) {
	t.Helper()
	kthwtest.WaitFor(t, fmt.Sprintf("%d acknowledged writes", n), soon, func() error {
		if got := w.n.Load(); got < n {
			return fmt.Errorf("%d so far", got)
		}
		return nil
	})
}

// check wants every acknowledged write to be there.
func (w *writers) check(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	w.stop()
	w.done.Wait()
	list, err := client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, m := range list.Items {
		there[m.Name] = true
	}
	lost := slices.DeleteFunc(slices.Clone(w.acknowledged), func(name string) bool { return there[name] })
	if len(lost) > 0 {
		t.Errorf("lost %d of %d acknowledged writes: %s", len(lost), len(w.acknowledged), strings.Join(lost, " "))
	}
	t.Logf("%d acknowledged writes, all there", len(w.acknowledged))
}

// leadsAtOnce wants both components, which have longLeases, to lead.
func leadsAtOnce(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	for _, name := range []string{kcm, sched} {
		kthwtest.WaitFor(t, name+" leading", soon, func() error { return isLeading(c, name) })
	}
}

func TestKillUnderWrites(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: longLeases()})
	for range 2 {
		w := startWriters(t, c.Client(t), 8)
		w.until(t, 300)
		c.Signal(t, syscall.SIGKILL)
		if got := c.Wait(t, soon); got != -1 {
			t.Fatalf("got exit code %d, want death by a signal", got)
		}
		c = again(t, c, kthwtest.Options{Args: longLeases()})
		leadsAtOnce(t, c)
		w.check(t, c.Client(t))
	}
}

func TestOrderlyStop(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			kthwtest.Turn(t, 1)
			c := kthwtest.Start(t, kthwtest.Options{Args: longLeases()})
			for range 20 {
				watchUntilTheEnd(t, ownConnection(t, c))
			}
			w := startWriters(t, c.Client(t), 4)
			w.until(t, 100)
			begun := time.Now()
			stop(t, c, s, 0)
			t.Logf("%v to exit code 0, with 20 watches and 4 writers: %v", s, time.Since(begun).Round(10*time.Millisecond))
			checkStopOrder(t, c.Log.String())

			// With another identity, only a lease that was given back is free.
			if err := os.Remove(filepath.Join(c.Dir, "instance-id")); err != nil {
				t.Fatal(err)
			}
			c = again(t, c, kthwtest.Options{Args: longLeases()})
			leadsAtOnce(t, c)
			w.check(t, c.Client(t))
		})
	}
}

// watchUntilTheEnd opens a watch and reads it until the server ends it.
func watchUntilTheEnd(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	w, err := client.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for e := range w.ResultChan() {
			if e.Type == watch.Error {
				return
			}
		}
	}()
	t.Cleanup(func() { w.Stop(); <-gone })
}

// checkStopOrder reads the order of the stop from the log.
func checkStopOrder(t *testing.T, log string) {
	t.Helper()
	at := map[string]int{}
	for i, line := range strings.Split(log, "\n") {
		for _, name := range []string{kcm, sched, "rbac-seed", "kube-apiserver", "etcd", "health", "status"} {
			if strings.Contains(line, "component="+name+" msg=stopped ") {
				at[name] = i
			}
		}
	}
	for _, order := range [][2]string{
		{kcm, "kube-apiserver"}, {sched, "kube-apiserver"}, {"rbac-seed", "kube-apiserver"},
		{"kube-apiserver", "etcd"}, {"etcd", "health"}, {"etcd", "status"},
	} {
		first, then := at[order[0]], at[order[1]]
		if first == 0 || then == 0 || first > then {
			t.Errorf("%s stopped in line %d of the log, %s in line %d; want them in this order", order[0], first, order[1], then)
		}
	}
	if t.Failed() {
		t.Logf("log:\n%s", log)
	}
}

func TestSecondSignal(t *testing.T) {
	kthwtest.Turn(t, 1)
	c := kthwtest.Start(t, kthwtest.Options{Args: longLeases()})
	watchUntilTheEnd(t, ownConnection(t, c)) // holds the stop up for as long as watches are given
	w := startWriters(t, c.Client(t), 4)
	w.until(t, 100)
	c.Signal(t, syscall.SIGTERM)
	kthwtest.WaitFor(t, "the stop to begin", soon, func() error {
		if !strings.Contains(c.Log.String(), "asked to stop") {
			return fmt.Errorf("the log ends with %s", c.Log.Tail(1))
		}
		return nil
	})
	c.Signal(t, syscall.SIGTERM)
	if got := c.Wait(t, soon); got != 1 {
		t.Errorf("got exit code %d, want 1", got)
	}
	if log := c.Log.String(); !strings.Contains(log, "kthwd: error: second signal") || trace.MatchString(log) {
		t.Errorf("got log\n%s\nwant a line on the second signal, and no stack trace", c.Log.Tail(20))
	}
	c = again(t, c, kthwtest.Options{Args: longLeases()})
	leadsAtOnce(t, c)
	w.check(t, c.Client(t))
}
