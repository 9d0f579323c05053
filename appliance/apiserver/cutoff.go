package apiserver

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	cutAfter  = 2 * time.Second // from the begin of a stop before the server was ready
	drainTime = 8 * time.Second // from the moment that no new request is accepted
	lastWords = time.Second     // for a request of the stop itself after that
)

// cutoff bounds the requests of a server that stops, which ends after them. The zero value is
// ready for use.
//
// Before the server was ready there are only its own: upstream lets each admission plugin wait
// 10 s for its informers, which the stop has ended (apiserver/pkg/admission/handler.go:
// WaitForReady), so that one request of the start could take longer than the whole stop may.
//
// Later there are also those of clients, which have drainTime. A webhook that accepts connections
// and never answers holds each request that asks it for up to 30 s, those of the stop as well:
// hooks that run one after the other withdraw the endpoint and delete the server's lease
// (kubernetes/pkg/controlplane/controller/kubernetesservice/controller.go:Stop).
type cutoff struct {
	mu    sync.Mutex
	over  bool
	known map[*http.Request]context.CancelFunc
}

// bound returns the request with a context that the cut ends. The caller calls done after it.
func (c *cutoff) bound(req *http.Request) (bounded *http.Request, done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		ctx, cancel := context.WithTimeout(req.Context(), lastWords)
		return req.WithContext(ctx), cancel
	}
	ctx, cancel := context.WithCancel(req.Context())
	if c.known == nil {
		c.known = map[*http.Request]context.CancelFunc{}
	}
	c.known[req] = cancel
	return req.WithContext(ctx), func() {
		c.mu.Lock()
		delete(c.known, req)
		c.mu.Unlock()
		cancel()
	}
}

// cut ends the contexts of all requests, and leaves little time to those that come.
func (c *cutoff) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for _, cancel := range c.known {
		cancel()
	}
}
