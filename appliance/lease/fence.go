package lease

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"kthwd/appliance/program"
)

// Fence keeps a component from acting on a lease that it has lost without noticing. A
// process that was stopped for longer than a lease, or on a machine that slept, continues
// in the middle of its work: its elector needs a moment to notice the loss, and the
// controllers are faster. The API server, in the same process, therefore checks the clock
// before it accepts a write from them.
//
// A fence does not stop a write that the API server began before the process was stopped;
// Kubernetes has no fence around etcd.
//
// The zero value refuses writes. disable removes the fence of a component that runs
// without a lease.
type Fence struct {
	server string        // URL of the API server with this fence: https://127.0.0.1:6443
	limit  time.Duration // from the start of a renewal until the component must have stopped on its own
	off    atomic.Bool
	until  atomic.Int64  // bootTime at which the lease is over; 0 while there is none
	shut   atomic.Bool   // the term has ended, though its lease is still held until its work has stopped
	only   atomic.Uint64 // number of the term whose writes pass; 0 while no term was left behind
}

// bootTime is a clock that runs on while the machine sleeps, unlike Go's monotonic clock.
// Tests replace it.
var bootTime = func() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// termPath begins the path of requests that belong to one term:
// /kthwd-term/3/api/v1/pods. The clients of a program differ in their names, certificates and
// tokens, and all come from the URL of its kubeconfig.
const termPath = "/kthwd-term/"

// admitOnly makes the fence refuse the writes of all terms but the one of that number. It
// returns the URL at which this term reaches the API server.
func (f *Fence) admitOnly(number uint64) (server string) {
	f.only.Store(number)
	return f.server + termPath + strconv.FormatUint(number, 10)
}

func (f *Fence) disable() { f.off.Store(true) }

// left is how long the component may still act on its lease; zero or negative if it must
// not.
func (f *Fence) left() time.Duration {
	if f.shut.Load() {
		return 0
	}
	return time.Duration(f.until.Load()) - bootTime()
}

// lock returns l as a lease lock that extends the fence with each renewal. It passes the
// error of each request for the lease to failing; nil after a success.
func (f *Fence) lock(l resourcelock.Interface, failing func(error)) *fencedLock {
	return &fencedLock{Interface: l, fence: f, failing: failing}
}

type fencedLock struct {
	resourcelock.Interface
	fence   *Fence
	keep    atomic.Bool // the lease is to expire: it is not given back
	holder  string      // of the lease when it was read last
	failing func(error)
	unread  bool // the last request has failed, and only read the lease
	failed  bool // a request has failed since the last success
}

// Get implements resourcelock.Interface. That there is no lease yet is no failure.
func (l *fencedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err == nil {
		l.holder = record.HolderIdentity
	}
	if err == nil || apierrors.IsNotFound(err) {
		if l.unread { // it says nothing about a write that was refused
			l.succeed()
		}
		return record, raw, err
	}
	l.unread = l.fail(ctx, err)
	return record, raw, err
}

func (l *fencedLock) succeed() {
	l.unread, l.failed = false, false
	l.failing(nil)
}

// fail reports the error of a request, unless it is the end of the campaign, the newer
// version of another controller, or the end of the time for attempts whose error is known.
func (l *fencedLock) fail(ctx context.Context, err error) (said bool) {
	if errors.Is(ctx.Err(), context.Canceled) || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || l.failed && ctx.Err() != nil {
		return false
	}
	l.failed = true
	l.failing(err)
	return true
}

// Create implements resourcelock.Interface.
func (l *fencedLock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.renew(ctx, r, l.Interface.Create)
}

// Update implements resourcelock.Interface.
func (l *fencedLock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return l.renew(ctx, r, l.Interface.Update)
}

func (l *fencedLock) renew(ctx context.Context, r resourcelock.LeaderElectionRecord, write func(context.Context, resourcelock.LeaderElectionRecord) error) error {
	begun := bootTime() // other controllers count from the moment they see the renewal, which is later
	if r.HolderIdentity == "" {
		l.fence.until.Store(0)
		// The election gives back a lease that it has lost, too, if it has not seen the loss: it
		// reads the lease, and compares an older record with its own identity
		// (client-go/tools/leaderelection/leaderelection.go:release).
		if l.keep.Load() || l.holder != l.Identity() {
			return nil
		}
	}
	err := write(ctx, r)
	if err == nil {
		l.succeed()
	} else if l.fail(ctx, err) {
		l.unread = false
	}
	if err == nil && r.HolderIdentity == l.Identity() {
		l.fence.until.Store(int64(begun + l.fence.limit))
	}
	return err
}

// Fences are the fences of the two components that need a lease.
type Fences struct{ ControllerManager, Scheduler Fence }

// NewFences makes the fences of an API server. Its clients reach it at the URL server.
func NewFences(server string) *Fences {
	return &Fences{Fence{server: server}, Fence{server: server}}
}

// Wrap puts the fences behind the filters that determine a request's user and its action.
func (f *Fences) Wrap(build func(http.Handler, *genericapiserver.Config) http.Handler) func(http.Handler, *genericapiserver.Config) http.Handler {
	return func(h http.Handler, c *genericapiserver.Config) http.Handler {
		return withoutTermPath(build(f.wrap(h, c), c))
	}
}

// termKey is the context key of the number in a request's termPath.
type termKey struct{}

// withoutTermPath moves the number in the path of a request from this process into the
// request's context. Nobody else has such paths: a proxy may guard some.
func withoutTermPath(next http.Handler) http.Handler {
	agent := restclient.DefaultKubernetesUserAgent()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rest, found := strings.CutPrefix(req.URL.Path, termPath)
		text, path, _ := strings.Cut(rest, "/")
		number, err := strconv.ParseUint(text, 10, 64)
		if !found || err != nil || !strings.HasPrefix(req.UserAgent(), agent) || !fromHere(req) {
			next.ServeHTTP(w, req)
			return
		}
		req = req.WithContext(context.WithValue(req.Context(), termKey{}, number))
		url := *req.URL
		url.Path, url.RawPath = "/"+path, strings.TrimPrefix(url.RawPath, termPath+text)
		req.URL, req.RequestURI = &url, url.RequestURI()
		next.ServeHTTP(w, req)
	})
}

// admits reports whether a request of the component's belongs to the term whose writes pass.
func (f *Fence) admits(ctx context.Context) bool {
	only := f.only.Load()
	number, _ := ctx.Value(termKey{}).(uint64)
	return only == 0 || only == number
}

func (f *Fences) wrap(next http.Handler, c *genericapiserver.Config) http.Handler {
	agent := restclient.DefaultKubernetesUserAgent()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fence := f.of(req, agent)
		if fence == nil || fence.off.Load() && !fence.shut.Load() && fence.admits(req.Context()) {
			next.ServeHTTP(w, req)
			return
		}
		left := fence.left()
		if left <= 0 || !fence.admits(req.Context()) {
			info, _ := genericapirequest.RequestInfoFrom(req.Context())
			err := apierrors.NewForbidden(schema.GroupResource{Group: info.APIGroup, Resource: info.Resource}, info.Name, errNoLease)
			responsewriters.ErrorNegotiated(err, c.Serializer, schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}, w, req)
			return
		}
		ctx, cancel := context.WithTimeout(req.Context(), left)
		defer cancel()
		next.ServeHTTP(w, req.WithContext(ctx))
	})
}

var errNoLease = errors.New("this controller does not hold the lease of the component that asks, or its term has ended")

// of returns the fence that a request must pass, or nil. Only a write from a component of
// this process has one. Another program with the same user, such as the guide's own
// kube-scheduler beside kthwd, guards its lease itself.
func (f *Fences) of(req *http.Request, agent string) *Fence {
	ctx := req.Context()
	info, ok := genericapirequest.RequestInfoFrom(ctx)
	if !ok || !info.IsResourceRequest || !strings.HasPrefix(req.UserAgent(), agent) || !fromHere(req) {
		return nil
	}
	switch info.Verb {
	case "create", "update", "patch", "delete", "deletecollection":
	default:
		return nil
	}
	switch info.APIGroup {
	case "authentication.k8s.io", "authorization.k8s.io": // reviews, which also the ports of a standby need
		return nil
	}
	user, ok := genericapirequest.UserFrom(ctx)
	switch {
	case !ok:
	case user.GetName() == "system:"+program.Scheduler:
		return &f.Scheduler
	case user.GetName() == "system:"+program.ControllerManager, strings.HasPrefix(user.GetName(), "system:serviceaccount:kube-system:"):
		return &f.ControllerManager
	}
	return nil
}

// fromHere tells whether a request comes from this machine.
func fromHere(req *http.Request) bool {
	host, _, err := net.SplitHostPort(req.RemoteAddr)
	ip := net.ParseIP(host)
	if err != nil || ip == nil {
		return false
	}
	local, ok := req.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ip.IsLoopback() || ok && local.IP.Equal(ip)
}
