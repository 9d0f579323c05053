package lb

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestAlive: Alive reports a blocked loop, and nothing once it runs again.
func TestAlive(t *testing.T) {
	p := newPeer(t)
	r := run(t, testConfig(p.addr), Options{})
	if err := r.Alive(t.Context()); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	r.loops[0].post(func() { <-release })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Alive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a loop that hangs: got %v", err)
	}
	close(release)
	if err := r.Alive(t.Context()); err != nil {
		t.Errorf("a loop that runs again: got %v", err)
	}
}
