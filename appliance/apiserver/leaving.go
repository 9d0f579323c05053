package apiserver

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"

	"kthwd/appliance/apiserver/access"
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
	absent     atomic.Bool // etcd does not answer for a while: requests are sent elsewhere

	requests cutoff // of those that a stop waits for
}

// readyz is an additional check of the API server's /readyz. Upstream's own check fails
// only when the server is told to stop, which is too early for its clients in this process.
func (f *departure) readyz() healthz.HealthChecker {
	return healthz.NamedCheck("kthwd-leaving", func(*http.Request) error {
		if f.notReady.Load() {
			return errors.New("kthwd sends its clients to the other controllers")
		}
		return nil
	})
}

// wrap makes clients reconnect elsewhere: after an answer with this header, net/http
// closes an HTTP/1 connection, and sends GOAWAY on an HTTP/2 connection, whose streams
// may end. While etcd does not answer, a request that arrives all the same, on a connection
// that was idle, is refused with an answer after which clients try again. Without the header, a request that arrives while the server closes an idle connection
// would fail. Connections that switch to another protocol are left alone.
func (f *departure) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if f.closing.Load() && req.Header.Get("Upgrade") == "" {
			w.Header().Set("Connection", "close")
		}
		if f.absent.Load() && !isProbe(req.URL.Path) {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "etcd defragments its database on this controller: connect again, and another one answers", http.StatusTooManyRequests)
			return
		}
		next.ServeHTTP(w, req)
	})
}

// cuttable lets the requests end that a stop waits for. Once the server was ready, a stop waits
// for no long-running ones: upstream ends watches, and streams stay until the process ends.
func (f *departure) cuttable(next http.Handler, c *genericapiserver.Config) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if info, known := apirequest.RequestInfoFrom(req.Context()); !f.servedOnce.Load() || !known || !c.LongRunningFunc(req, info) {
			bound, done := f.requests.bound(req)
			defer done()
			req = bound
		}
		next.ServeHTTP(w, req)
	})
}

// isProbe reports whether a path is one with which the health of the server is asked.
func isProbe(path string) bool {
	for _, probe := range []string{"/readyz", "/livez", "/healthz"} {
		if path == probe || strings.HasPrefix(path, probe+"/") {
			return true
		}
	}
	return false
}

// chained adds wrap in front of the chain of filters, and cuttable behind it, where the kind of
// a request is known.
func (f *departure) chained(build access.Chain) access.Chain {
	return func(h http.Handler, c *genericapiserver.Config) http.Handler {
		return f.wrap(build(f.cuttable(h, c), c))
	}
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
func (a *Server) leave(ctx context.Context, s *built) (rest time.Duration) {
	begun := time.Now()
	close(s.leaving)
	s.absent.Store(false)
	s.notReady.Store(true)
	go a.etcd.Abandon(context.WithoutCancel(ctx), quorumPatience)
	if !s.servedOnce.Load() {
		time.AfterFunc(cutAfter, s.requests.cut)
	} else {
		defer func() { time.AfterFunc(rest+drainTime, s.requests.cut) }()
	}
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

// BeAbsent sends the clients of the server to the other controllers, for a time in which etcd
// does not answer here: /readyz fails, and after the delay of a stop each further request is
// answered with the advice to connect again. It blocks for that delay. back, which is never
// nil, ends it.
func (a *Server) BeAbsent(ctx context.Context) (back func(), err error) {
	a.mu.Lock()
	s := a.running
	a.mu.Unlock()
	if s == nil || !s.servedOnce.Load() || s.notReady.Load() {
		return func() {}, nil // nobody is served, or it stops
	}
	s.notReady.Store(true)
	back = func() {
		s.absent.Store(false)
		select {
		case <-s.leaving:
			return // it stops meanwhile
		default:
		}
		s.closing.Store(false)
		s.notReady.Store(false)
	}
	delay := s.generic.ShutdownDelayDuration
	for _, step := range []func(){func() { s.closing.Store(true) }, func() { s.absent.Store(true) }} {
		select {
		case <-time.After(delay / 2):
			step()
		case <-s.leaving:
			return back, errors.New("kthwd stops")
		case <-ctx.Done():
			return back, ctx.Err()
		}
	}
	return back, nil
}
