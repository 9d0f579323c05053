package apiserver

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"

	"kthwd/appliance/supervise"
)

// settleTime is what those are given who follow the endpoints and not /readyz: so
// long the API server serves after it has left them, if the delay is that long.
const settleTime = time.Second

// quorumPatience is how long a stop waits for a leader: somewhat more than an election.
const quorumPatience = 3 * time.Second

// farewell is how an API server leaves its clients to the other controllers'. The
// zero value is ready for use; it belongs to one server.
type farewell struct {
	welcome atomic.Bool // there may be clients: /readyz was ok once
	leaving atomic.Bool // /readyz fails
	parting atomic.Bool // each answer is the last one on its connection
}

// readyz is one more check of the API server's /readyz. Upstream's own fails only
// when the server is told to stop, which its clients in this process must not see yet.
func (f *farewell) readyz() healthz.HealthChecker {
	return healthz.NamedCheck("kthwd-leaving", func(*http.Request) error {
		if f.leaving.Load() {
			return errors.New("kthwd stops")
		}
		return nil
	})
}

// wrap makes clients leave by themselves: net/http closes an HTTP/1 connection after
// an answer with this header, and sends GOAWAY on an HTTP/2 one, whose streams may
// all end. Without it, a request that comes in while the server closes an idle
// connection would fail. A connection that becomes another protocol's is left alone.
func (f *farewell) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if f.parting.Load() && req.Header.Get("Upgrade") == "" {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, req)
	})
}

// chained puts wrap around what builds the chain of filters.
func (f *farewell) chained(build func(http.Handler, *genericapiserver.Config) http.Handler) func(http.Handler, *genericapiserver.Config) http.Handler {
	return func(h http.Handler, c *genericapiserver.Config) http.Handler { return f.wrap(build(h, c)) }
}

// part sends away the clients that are here, once those who look at /readyz have had
// half of the delay to see that no more are wanted.
func (f *farewell) part(delay time.Duration) {
	if delay > 0 {
		time.AfterFunc(delay/2, func() { f.parting.Store(true) })
	}
}

// leave is the time from the beginning of the group's stop until the API server
// itself is to stop, when ctx ends. It returns for how long the server is to
// accept new requests after that; upstream's delay, which has no other use then.
func (a *Server) leave(ctx context.Context, s *built) time.Duration {
	begun := time.Now()
	s.leaving.Store(true)
	go a.etcd.Abandon(context.WithoutCancel(ctx), quorumPatience)
	delay := a.delay(context.Cause(supervise.Leaving(ctx)), s)
	s.part(delay)
	if delay > 0 {
		a.log.Info("leaving: /readyz fails, requests are served", "for", delay)
		supervise.Report(ctx).Ready("leaving")
	}
	<-ctx.Done()
	// The leases are given back, and nobody but clients from outside is left: from
	// now on another member may lead.
	a.etcd.RequestTransfer()
	if delay == 0 {
		return 0
	}
	return max(delay-time.Since(begun), min(delay, settleTime))
}

// delay is how long the server serves while leaving.
func (a *Server) delay(cause error, s *built) time.Duration {
	if !s.welcome.Load() || !errors.Is(cause, context.Canceled) {
		return 0 // nobody is here, or something has failed and may still be at work
	}
	if !a.usersDelay && !a.etcd.Redundant() {
		return 0 // nobody could serve instead
	}
	return s.generic.ShutdownDelayDuration
}
