package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"kthwd/test/kthwtest"
)

// crowd is clients that ask for something all the time and forgive nothing: no
// answer is asked for twice.
type crowd struct {
	stop   func()
	done   sync.WaitGroup
	asked  atomic.Int64
	writes atomic.Int64

	mu     sync.Mutex
	errors []string
	slow   time.Duration // the slowest answer
}

// startCrowd has clients of three kinds ask 200 times a second together: on kept
// connections of HTTP/2 and of HTTP/1, and on a new one for each request. One
// request in five is a write.
func startCrowd(t *testing.T, config *rest.Config) *crowd {
	t.Helper()
	return startCrowdOf(t, config, false)
}

// startCrowdOf is startCrowd with patient clients, each of which waits for an answer before it
// asks again: for a machine of which nobody knows how much it can bear. Beside other tests they
// ask 50 times a second.
func startCrowdOf(t *testing.T, config *rest.Config, patient bool) *crowd {
	t.Helper()
	return startCrowdAt(t, patient, config)
}

// startCrowdAt is startCrowdOf with clients of several servers: those of the first kind ask the first
// one, and so on.
func startCrowdAt(t *testing.T, patient bool, configs ...*rest.Config) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{stop: cancel}
	for i, kind := range []struct {
		name  string
		each  time.Duration
		adapt func(*http.Transport)
	}{
		{"HTTP/2", 10 * time.Millisecond, func(*http.Transport) {}},
		{"HTTP/1", 20 * time.Millisecond, func(t *http.Transport) {
			t.ForceAttemptHTTP2, t.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
		}},
		{"new connections", 20 * time.Millisecond, func(t *http.Transport) { t.DisableKeepAlives = true }},
	} {
		config := configs[i%len(configs)]
		tls, err := rest.TLSConfigFor(config)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true}
		kind.adapt(transport)
		client := &http.Client{Transport: transport}
		c.done.Go(func() {
			defer transport.CloseIdleConnections()
			var under sync.WaitGroup
			defer under.Wait()
			each := kind.each
			if patient && shares {
				each *= 4 // of fewer clients: other tests need the processors, too
			}
			tick := time.NewTicker(each)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				if ask := func() { c.ask(client, config.Host, kind.name, fmt.Sprintf("crowd-%d-%d", i, n), n%5 == 0) }; patient {
					ask()
				} else {
					under.Go(ask)
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); c.done.Wait() })
	return c
}

func (c *crowd) ask(client *http.Client, base, who, name string, write bool) {
	begun := time.Now()
	err := c.try(client, base, name, write)
	c.asked.Add(1)
	if write {
		c.writes.Add(1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	took := time.Since(begun)
	c.slow = max(c.slow, took)
	if err != nil {
		c.errors = append(c.errors, fmt.Sprintf("%s %s, write %v, after %v: %v", begun.Format("05.000"), who, write, took.Round(time.Millisecond), err))
	}
}

func (c *crowd) try(client *http.Client, base, name string, write bool) error {
	method, url, body, want := http.MethodGet, base+"/api/v1/namespaces/default", []byte(nil), http.StatusOK
	if write {
		method, url, want = http.MethodPost, url+"/configmaps", http.StatusCreated
		body, _ = json.Marshal(corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s: %.300s", resp.Status, answer)
	}
	return err
}

// end stops the clients and fails the test for each request that failed.
func (c *crowd) end(t *testing.T) {
	t.Helper()
	c.stop()
	c.done.Wait()
	t.Logf("%d requests, %d of them writes, the slowest took %v", c.asked.Load(), c.writes.Load(), c.slow.Round(time.Millisecond))
	if len(c.errors) > 0 {
		t.Errorf("%d requests failed:\n%s", len(c.errors), strings.Join(c.errors, "\n"))
	}
}

// leaderOf is the number of the controller that etcd is led by.
func leaderOf(c *kthwtest.Controller) (int, error) {
	r, err := c.Status()
	if err != nil || r.Quorum == nil || r.Quorum.Leader == "" {
		return 0, errors.Join(errors.New("no leader"), err)
	}
	var i int
	_, err = fmt.Sscanf(r.Quorum.Leader, "c%d", &i)
	return i, err
}

// Nobody who comes through the balancer notices that controllers leave, one after
// the other, and come back. It runs alone: the controllers that stay must have a
// processor to answer their checks with, or clients have nowhere to go. For the same reason it
// does not run beside the other packages of make test.
func TestLeaving(t *testing.T) {
	endToEnd(t, "TestNoWriteFailsWhileLeadershipMoves, and TestLeavingBackend of lb, are in make test")
	kthwtest.Turn(t, kthwtest.Alone)
	m := makeCluster(t)
	m.args = longLeases()
	all := m.startAll(t)
	m.start(t, 3).WaitReady(t)
	clients := startCrowd(t, all[0].RESTConfig(t))
	kthwtest.WaitFor(t, "the crowd to have asked", soon, func() error {
		if n := clients.asked.Load(); n < 200 {
			return fmt.Errorf("%d so far", n)
		}
		return nil
	})
	leader, err := leaderOf(all[0])
	if err != nil {
		t.Fatal(err)
	}
	order := []int{leader, (leader + 1) % 3, (leader + 2) % 3} // the leader first: leadership moves in any case
	for _, i := range order {
		leads := -1
		kthwtest.WaitFor(t, "a leader", soon, func() error { leads, err = leaderOf(all[i]); return err })
		var led []string
		for _, name := range []string{kcm, sched} {
			if isLeading(all[i], name) == nil {
				led = append(led, name)
			}
		}
		begun := time.Now()
		m.leaves(t, all[i])
		t.Logf("c%d (leader: c%d): left in %v", i, leads, time.Since(begun).Round(10*time.Millisecond))
		log := all[i].Log.String()
		if got, want := strings.Contains(log, "leadership handed over"), leads == i; got != want {
			t.Errorf("c%d, with leader c%d: says that leadership was handed over: %v\n%s", i, leads, got, all[i].Log.Tail(30))
		}
		for _, name := range led { // its lease was given back, or nobody could lead
			kthwtest.WaitFor(t, name+" led by another one", soon, func() error {
				err := isLeading(all[(i+1)%3], name)
				if err != nil {
					err = isLeading(all[(i+2)%3], name)
				}
				return err
			})
		}
		all[i] = m.start(t, i)
		all[i].WaitReady(t)
	}
	clients.end(t)
}

// leaves sends SIGTERM and follows what can be seen from outside.
func (m *made) leaves(t *testing.T, c *kthwtest.Controller) {
	t.Helper()
	config := c.RESTConfig(t)
	config.Host = fmt.Sprintf("https://%s:%d", c.Address, c.Ports.Secure)
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	api := &http.Transport{TLSClientConfig: tls, DisableKeepAlives: true}
	c.Signal(t, syscall.SIGTERM)
	signalled := time.Now()
	kthwtest.WaitFor(t, "/readyz to fail", soon, func() error {
		for what, look := range map[string]func() (int, string, error){
			"API server": func() (int, string, error) { return ask(api, config.Host+"/readyz") },
			"bridge":     func() (int, string, error) { return bridge(c, "/readyz") },
		} {
			code, body, err := look()
			if err != nil {
				t.Fatalf("%s, %v after SIGTERM: %v", what, time.Since(signalled), err)
			}
			if code == http.StatusOK {
				return fmt.Errorf("%s says %q", what, body)
			}
		}
		return nil
	})
	served := 0
	for { // requests, until the drain
		code, _, err := ask(api, config.Host+"/livez")
		if err != nil || code != http.StatusOK {
			break
		}
		served++
		pause(t.Context(), 20*time.Millisecond) // leave the crowd the processors
	}
	if served == 0 {
		t.Error("no request was served after /readyz failed")
	}
	if code := c.Wait(t, soon); code != 0 {
		t.Errorf("exit code: got %d, want 0\n%s", code, c.Log.Tail(30))
	}
	events := []string{"leaving: /readyz fails", "component=kube-scheduler msg=stopped", "component=kube-apiserver msg=stopped", "component=etcd msg=stopped"}
	if !inOrder(c.Log.String(), events) {
		t.Errorf("got\n%s\nwant %q in this order", c.Log.Tail(40), events)
		return
	}
	// kthwd's own clock: it may take longer on a busy machine, but never less.
	if served := logged(t, c, events[2]).Sub(logged(t, c, events[0])); served < leavingDelay {
		t.Errorf("the API server stopped %v after /readyz began to fail, want %v at least", served, leavingDelay)
	}
}

// leavingDelay is what kthwd gives the balancers of a cluster to notice that it leaves.
const leavingDelay = 3 * time.Second

// logged is when the first line with text was written.
func logged(t *testing.T, c *kthwtest.Controller, text string) time.Time {
	t.Helper()
	for line := range strings.Lines(c.Log.String()) {
		if !strings.Contains(line, text) {
			continue
		}
		at, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatalf("the line %q: %v", line, err)
		}
		return when
	}
	t.Fatalf("no line with %q", text)
	return time.Time{}
}

// inOrder tells whether each of texts comes after the one before.
func inOrder(log string, texts []string) bool {
	return !slices.ContainsFunc(texts, func(s string) bool {
		i := strings.Index(log, s)
		if i >= 0 {
			log = log[i:]
		}
		return i < 0
	})
}
