package apiserver

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	cutAfter  = 2 * time.Second // from the begin of a stop
	lastWords = time.Second     // for a request of the stop itself after that
)

// cutoff bounds the requests of a server that stops before it was ready. Upstream lets each
// admission plugin wait 10 s for its informers, which the stop has ended
// (apiserver/pkg/admission/handler.go:WaitForReady), and waits for the requests before it
// ends: so that one request of the start could take longer than the whole stop may. There
// are no clients yet, only the server's own. The zero value is ready for use.
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
