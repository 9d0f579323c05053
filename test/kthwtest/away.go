package kthwtest

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Away is how an API server was away while something else took its place.
type Away struct {
	Times   int           // how often answers stopped
	Longest time.Duration // from the last answer before to the first one after
}

// WatchAway reads an object through the API all the time, until the returned function is called.
// Whoever hands a cluster over wants it to be away once; how long it was depends on the machine,
// and decides no test. An answer that is only slow counts as neither.
func WatchAway(t testing.TB, config *rest.Config) (end func() Away) {
	t.Helper()
	config = rest.CopyConfig(config)
	config.QPS, config.Burst, config.Timeout = -1, -1, 5*time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	answers := func(ctx context.Context) error {
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		return err
	}
	if err := answers(t.Context()); err != nil {
		t.Fatalf("before the API may go away: %v", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	all := make(chan Away)
	go func() {
		all <- follow(ctx, answers)
	}()
	end = sync.OnceValue(func() Away {
		stop()
		a := <-all
		a.Longest = a.Longest.Round(10 * time.Millisecond)
		return a
	})
	t.Cleanup(func() { end() })
	return end
}

// follow asks until ctx ends.
func follow(ctx context.Context, answers func(context.Context) error) (a Away) {
	last, gone := time.Now(), false
	for tick := time.Tick(20 * time.Millisecond); ; {
		switch err := answers(ctx); {
		case ctx.Err() != nil:
			return a
		case err == nil:
			a.Longest, last, gone = max(a.Longest, time.Since(last)), time.Now(), false
		case !gone && !errors.Is(err, context.DeadlineExceeded) && !os.IsTimeout(err):
			a.Times, gone = a.Times+1, true
		}
		select {
		case <-ctx.Done():
			return a
		case <-tick:
		}
	}
}
