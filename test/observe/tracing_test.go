package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// traces is an OpenTelemetry collector that counts spans by service.
type traces struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string]int
}

// Export implements collector.TraceServiceServer.
func (c *traces) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.GetResourceSpans() {
		for _, a := range rs.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				for _, s := range rs.GetScopeSpans() {
					c.spans[a.GetValue().GetStringValue()] += len(s.GetSpans())
				}
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func startTraces(t *testing.T) (_ *traces, address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &traces{spans: map[string]int{}}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, got)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	return got, l.Addr().String()
}

// TestTracing requires one setting to make the API server and etcd send traces.
func TestTracing(t *testing.T) {
	t.Parallel()
	got, address := startTraces(t)
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--tracing-endpoint=" + address}})
	client := c.Client(t).CoreV1().Namespaces()
	kthwtest.WaitFor(t, "spans of both", 3*time.Minute, func() error {
		for range 200 { // one in a hundred is traced
			if _, err := client.Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		got.mu.Lock()
		defer got.mu.Unlock()
		if len(got.spans) < 2 {
			return errors.New(fmt.Sprint(got.spans))
		}
		return nil
	})
	got.mu.Lock()
	defer got.mu.Unlock()
	if got.spans["etcd"] == 0 {
		t.Errorf("got %v, want some of etcd and of the API server", got.spans)
	}
}
