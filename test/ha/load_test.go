package ha

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kthwd/test/kthwtest"
)

const (
	loadRate    = 200 // requests a second, of which every fourth is a write
	loadClients = 10  // with a connection each
	loadObjects = 50  // each is written once a second

	probeRate    = 20 // new connections a second
	loadPatience = 10 * time.Second
)

// requests are made at a fixed rate, whatever becomes of the ones before, and
// each only once: what client-go would try again counts as failed.
type requests struct {
	stopped context.CancelFunc
	done    sync.WaitGroup

	mu       sync.Mutex
	total    int
	longest  time.Duration
	failures []string
}

func makeRequests(rate int, request func(ctx context.Context, n int) error) *requests {
	ctx, cancel := context.WithCancel(context.Background())
	l := &requests{stopped: cancel}
	l.done.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-tick.C:
				l.done.Go(func() { l.one(n, request) })
			case <-ctx.Done():
				return
			}
		}
	})
	return l
}

func (l *requests) one(n int, request func(ctx context.Context, n int) error) {
	ctx, cancel := context.WithTimeout(context.Background(), loadPatience)
	defer cancel()
	begun := time.Now()
	err := request(ctx, n)
	took := time.Since(begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	l.longest = max(l.longest, took)
	if err != nil {
		l.failures = append(l.failures, fmt.Sprintf("%s, after %v: %v", begun.Format(clock), took.Round(time.Millisecond), err))
	}
}

// stop waits for the answers that are still to come.
func (l *requests) stop() {
	l.stopped()
	l.done.Wait()
}

// none holds the row to no request that failed, and to enough of them.
func (l *requests) none(o *round, what string, least int) {
	o.t.Helper()
	l.stop()
	o.result.Measured = fmt.Sprintf("%d of %d failed", len(l.failures), l.total)
	o.note("longest %s %s", what, seconds(l.longest))
	slices.Sort(l.failures)
	for _, f := range shorten(l.failures, 10) {
		o.missed(len(l.failures) > l.total/100, "%s failed: %s", what, f)
	}
	if l.total < least {
		o.missed(l.total < least/tooLate, "%d of %s, want at least %d", l.total, what, least)
	}
}

// apiLoad reads and writes. Writes of one object that are under way together get into
// each other's way, and the API server begins each of them again up to five times:
// they must be far apart, for a machine that is slow for a moment is to catch up.
func (o *round) apiLoad(t testing.TB) *requests {
	t.Helper()
	var all []kubernetes.Interface
	for range loadClients {
		client, _ := o.client(t, "", 0)
		all = append(all, client)
	}
	object := func(n int) string { return fmt.Sprintf("load-%d", n/4%loadObjects) }
	for n := 0; n < 4*loadObjects; n += 4 {
		// The fault of the row before may still cost an answer; requests count from makeRequests on.
		kthwtest.WaitFor(t, object(n)+" to exist", recovery, func() error {
			_, err := all[0].CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: object(n)}}, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
	}
	return makeRequests(loadRate, func(ctx context.Context, n int) error {
		rest := all[n%loadClients].CoreV1().RESTClient()
		if n%4 != 0 {
			return rest.Get().MaxRetries(0).Namespace("default").Resource("configmaps").Name(object(n)).Do(ctx).Error()
		}
		body := fmt.Appendf(nil, `{"data":{"n":"%d"}}`, n)
		return rest.Patch(types.MergePatchType).MaxRetries(0).Namespace("default").Resource("configmaps").Name(object(n)).Body(body).Do(ctx).Error()
	})
}

// newConnections makes a new TLS connection for each request, with a client certificate.
func (o *round) newConnections() *requests {
	admin, err := clientcmd.BuildConfigFromFlags("", o.admin)
	if err != nil {
		o.t.Fatal(err)
	}
	config, err := rest.TLSConfigFor(admin)
	if err != nil {
		o.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: config}}
	return makeRequests(probeRate, func(ctx context.Context, _ int) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+o.server+"/version", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}
