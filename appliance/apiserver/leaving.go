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

// settleTime is how long the API server keeps serving after it has removed its endpoint,
// for clients that watch endpoints rather than /readyz. It never exceeds the delay.
const settleTime = time.Second

// quorumPatience is how long a stop waits for a leader: slightly more than an election.
const quorumPatience = 3 * time.Second

// departure sends the clients of one stopping API server to the other controllers. The
// zero value is ready for use.
type departure struct {
	servedOnce atomic.Bool // /readyz was ok once, so there may be clients
	notReady   atomic.Bool // /readyz fails
	closing    atomic.Bool // each answer is the last one on its connection
}

// readyz is an additional check of the API server's /readyz. Upstream's own check fails
// only when the server is told to stop, which is too early for its clients in this process.
func (f *departure) readyz() healthz.HealthChecker {
	return healthz.NamedCheck("kthwd-leaving", func(*http.Request) error {
		if f.notReady.Load() {
			return errors.New("kthwd stops")
		}
		return nil
	})
}

// wrap makes clients reconnect elsewhere: after an answer with this header, net/http
// closes an HTTP/1 connection, and sends GOAWAY on an HTTP/2 connection, whose streams
// may end. Without it, a request that arrives while the server closes an idle connection
// would fail. Connections that switch to another protocol are left alone.
func (f *departure) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if f.closing.Load() && req.Header.Get("Upgrade") == "" {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, req)
	})
}

// chained adds wrap to the chain of filters.
func (f *departure) chained(build func(http.Handler, *genericapiserver.Config) http.Handler) func(http.Handler, *genericapiserver.Config) http.Handler {
	return func(h http.Handler, c *genericapiserver.Config) http.Handler { return f.wrap(build(h, c)) }
}

// closeAfter makes the remaining clients reconnect, after clients that probe /readyz have
// had half of the delay to notice.
func (f *departure) closeAfter(delay time.Duration) {
	if delay > 0 {
		time.AfterFunc(delay/2, func() { f.closing.Store(true) })
	}
}

// leave covers the time from the start of the group's stop until ctx ends, when the API
// server itself must stop. It returns how long the server must accept new requests after
// that, which becomes upstream's delay.
func (a *Server) leave(ctx context.Context, s *built) time.Duration {
	begun := time.Now()
	s.notReady.Store(true)
	go a.etcd.Abandon(context.WithoutCancel(ctx), quorumPatience)
	delay := a.delay(context.Cause(supervise.Leaving(ctx)), s)
	s.closeAfter(delay)
	if delay > 0 {
		a.log.Info("leaving: /readyz fails, requests are served", "for", delay)
		supervise.Report(ctx).Ready("leaving")
	}
	<-ctx.Done()
	// The leases are released and only external clients are left, so another member may
	// lead from now on.
	a.etcd.RequestTransfer()
	if delay == 0 {
		return 0
	}
	return max(delay-time.Since(begun), min(delay, settleTime))
}

// delay returns how long the server keeps serving while it leaves.
func (a *Server) delay(cause error, s *built) time.Duration {
	if !s.servedOnce.Load() || !errors.Is(cause, context.Canceled) {
		return 0 // no clients, or a failed component that may still act
	}
	if !a.usersDelay && !a.etcd.Redundant() {
		return 0 // no other controller could serve instead
	}
	return s.generic.ShutdownDelayDuration
}
