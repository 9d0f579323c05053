package series

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics/legacyregistry"
)

// observe records a request for one object as kube-apiserver does, or a watch.
func observe(watch bool, resource string, took time.Duration) {
	u, scope := &url.URL{Path: "/api/v1/" + resource}, "resource"
	if watch {
		u.RawQuery, scope = "watch=true", "cluster"
	}
	req := &http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}}
	metrics.MonitorRequest(req, "", "", "v1", resource, "", scope, "apiserver", false, "", http.StatusOK, 0, took)
}

// The two series follow upstream's own histogram, found by its description.
func TestRequests(t *testing.T) {
	notBuilt := errors.New("not built yet")
	s := Requests(func() (*rest.Config, error) { return nil, notBuilt })
	if got := s.Read(0); got != nil {
		t.Errorf("before the API server: got %v", got)
	}
	metrics.Register()
	notBuilt = nil
	observe(false, "pods", time.Millisecond)
	s.Read(0)
	if got := s.Read(30 * time.Second); len(got) != 2 || !math.IsNaN(got[0]) || got[1] != 0 {
		t.Errorf("without requests: got %v", got)
	}
	for range 60 {
		observe(false, "pods", 90*time.Millisecond)
	}
	observe(true, "pods", time.Hour)
	got := s.Read(30 * time.Second)
	if len(got) != 2 || got[0] < 0.05 || got[0] > 0.1 || got[1] != 2 {
		t.Errorf("got a p99 of %v s and %v requests a second, want 0.05 to 0.1 and 2", got[0], got[1])
	}
}

// fill makes as many series as a cluster of some size has.
func fill() {
	metrics.Register()
	for i := range 100 {
		for _, watch := range []bool{false, true} {
			observe(watch, fmt.Sprint("resource", i), time.Duration(i)*time.Millisecond)
		}
	}
}

// A sample of one family beside a gathering of them all.
func BenchmarkRequests(b *testing.B) {
	fill()
	b.Run("sample", func(b *testing.B) {
		s := Requests(func() (*rest.Config, error) { return nil, nil })
		for b.Loop() {
			s.Read(30 * time.Second)
		}
	})
	b.Run("gather", func(b *testing.B) {
		for b.Loop() {
			if _, err := legacyregistry.DefaultGatherer.Gather(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
