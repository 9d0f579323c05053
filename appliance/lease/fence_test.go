package lease

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"kthwd/appliance/program"
)

// fakeLock is a lease lock without competitors.
type fakeLock struct {
	resourcelock.Interface
	err error
}

func (l *fakeLock) Identity() string { return "c0_1" }

func (l *fakeLock) Create(context.Context, resourcelock.LeaderElectionRecord) error {
	return l.err
}

func (l *fakeLock) Update(context.Context, resourcelock.LeaderElectionRecord) error {
	return l.err
}

// atBoot replaces bootTime by a clock that the test sets.
func atBoot(t *testing.T) *time.Duration {
	t.Helper()
	real, now := bootTime, time.Hour
	bootTime = func() time.Duration { return now }
	t.Cleanup(func() { bootTime = real })
	return &now
}

// A fence is open for the renew deadline, from the start of the last successful renewal, on
// a clock that runs on while the machine sleeps.
func TestFenceFollowsTheLease(t *testing.T) {
	now := atBoot(t)
	f := &Fence{limit: 10 * time.Second}
	inner := &fakeLock{}
	lock := f.lock(inner, func(error) {})
	ours, others, nobodys := resourcelock.LeaderElectionRecord{HolderIdentity: "c0_1"}, resourcelock.LeaderElectionRecord{HolderIdentity: "c1_1"}, resourcelock.LeaderElectionRecord{}
	want := func(what string, left time.Duration) {
		t.Helper()
		if got := max(f.left(), 0); got != left {
			t.Errorf("%s: got %v left, want %v", what, got, left)
		}
	}
	want("before there is a lease", 0)
	_ = lock.Create(t.Context(), others)
	want("made for another one", 0)
	_ = lock.Create(t.Context(), ours)
	want("made", 10*time.Second)
	*now += 9 * time.Second
	want("9 s later", time.Second)
	_ = lock.Update(t.Context(), ours)
	want("renewed", 10*time.Second)
	inner.err = errors.New("no quorum")
	*now += 4 * time.Second
	_ = lock.Update(t.Context(), ours)
	want("not renewed", 6*time.Second)
	*now += time.Hour // asleep
	want("an hour later", 0)
	inner.err = nil
	_ = lock.Update(t.Context(), ours)
	want("renewed again", 10*time.Second)
	_ = lock.Update(t.Context(), nobodys)
	want("given back", 0)
}

// The API server lets a component write while its fence is open. Fences do not affect other
// clients.
func TestFenceInTheAPIServer(t *testing.T) {
	atBoot(t)
	const kubernetesUser = "system:serviceaccount:kube-system:replicaset-controller"
	ours := restclient.DefaultKubernetesUserAgent() + "/replicaset-controller"
	for _, tt := range []struct {
		name, user, verb, group, resource, agent, from string
		fenced                                         string // which fence; empty for none
	}{
		{"the scheduler binds", "system:kube-scheduler", "create", "", "pods", ours, "127.0.0.1:1", program.Scheduler},
		{"a controller deletes", kubernetesUser, "delete", "", "pods", ours, "10.0.1.73:1", program.ControllerManager},
		{"kube-controller-manager patches", "system:kube-controller-manager", "patch", "apps", "deployments", ours, "[::1]:1", program.ControllerManager},
		{"a controller watches", kubernetesUser, "watch", "", "pods", ours, "127.0.0.1:1", ""},
		{"a port asks who somebody is", "system:kube-scheduler", "create", "authentication.k8s.io", "tokenreviews", ours, "127.0.0.1:1", ""},
		{"the lease itself", "system:kube-scheduler", "update", "coordination.k8s.io", "leases", "kthwd/leader-election", "127.0.0.1:1", ""},
		{"the guide's scheduler on this machine", "system:kube-scheduler", "create", "", "pods", "kube-scheduler/v1.36.3 (linux/amd64)", "127.0.0.1:1", ""},
		{"a kthwd elsewhere", "system:kube-scheduler", "create", "", "pods", ours, "10.0.1.35:1", ""},
		{"an administrator", "admin", "create", "", "pods", ours, "127.0.0.1:1", ""},
		{"a service account of somebody's", "system:serviceaccount:default:builder", "create", "", "pods", ours, "127.0.0.1:1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var f Fences
			served := false
			h := f.wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served = true }), &genericapiserver.Config{Serializer: legacyscheme.Codecs})
			ask := func() int {
				served = false
				req := httptest.NewRequest(http.MethodPost, "/", nil)
				req.RemoteAddr = tt.from
				req.Header.Set("User-Agent", tt.agent)
				ctx := context.WithValue(req.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP("10.0.1.73"), Port: 6443})
				ctx = genericapirequest.WithUser(ctx, &user.DefaultInfo{Name: tt.user})
				ctx = genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{IsResourceRequest: true, Verb: tt.verb, APIGroup: tt.group, APIVersion: "v1", Resource: tt.resource})
				w := httptest.NewRecorder()
				h.ServeHTTP(w, req.WithContext(ctx))
				if served != (w.Code == http.StatusOK) || !served && w.Code != http.StatusForbidden {
					t.Errorf("served %v with status %d", served, w.Code)
				}
				return w.Code
			}
			if got := ask() != http.StatusOK; got != (tt.fenced != "") {
				t.Errorf("without a lease: refused %v, want it fenced by %q", got, tt.fenced)
			}
			mine, other := &f.Scheduler, &f.ControllerManager
			if tt.fenced == program.ControllerManager {
				mine, other = other, mine
			}
			other.disable()
			if got := ask() != http.StatusOK; got != (tt.fenced != "") {
				t.Errorf("with the other's lease: refused %v, want it fenced by %q", got, tt.fenced)
			}
			mine.until.Store(int64(bootTime() + time.Second))
			if got := ask(); got != http.StatusOK {
				t.Errorf("with the lease: got status %d", got)
			}
			mine.shut.Store(true)
			if got := ask() != http.StatusOK; got != (tt.fenced != "") {
				t.Errorf("after the term's end: refused %v, want it fenced by %q", got, tt.fenced)
			}
			mine.disable()
			if got := ask() != http.StatusOK; got != (tt.fenced != "") {
				t.Errorf("after the term's end, without leader election: refused %v, want it fenced by %q", got, tt.fenced)
			}
			mine.shut.Store(false)
			mine.until.Store(0)
			if got := ask(); got != http.StatusOK {
				t.Errorf("without leader election: got status %d", got)
			}
		})
	}
}

// After a leak only the writes of the newest term pass, whatever client they come from.
func TestFenceTellsTermsApart(t *testing.T) {
	atBoot(t)
	ours := restclient.DefaultKubernetesUserAgent() + "/replicaset-controller"
	var f Fences
	f.ControllerManager.until.Store(int64(bootTime() + time.Second))
	var served *http.Request
	handler := f.wrap(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { served = req }), &genericapiserver.Config{Serializer: legacyscheme.Codecs})
	chain := withoutTermPath(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx := genericapirequest.WithUser(req.Context(), &user.DefaultInfo{Name: "system:serviceaccount:kube-system:replicaset-controller"})
		ctx = genericapirequest.WithRequestInfo(ctx, &genericapirequest.RequestInfo{IsResourceRequest: true, Verb: "create", APIVersion: "v1", Resource: "pods"})
		handler.ServeHTTP(w, req.WithContext(ctx))
	}))
	for _, tt := range []struct {
		name, path, agent, from string
		leaked                  bool
		seen                    string // the path that the API server sees; empty if the request is refused
	}{
		{"before any leak", "/api/v1/pods?dryRun=All", ours, "127.0.0.1:1", false, "/api/v1/pods?dryRun=All"},
		{"the old term", "/api/v1/pods", ours, "127.0.0.1:1", true, ""},
		{"a term before the newest", "/kthwd-term/6/api/v1/pods", ours, "127.0.0.1:1", true, ""},
		{"the newest term", "/kthwd-term/7/api/v1/pods?dryRun=All", ours, "127.0.0.1:1", true, "/api/v1/pods?dryRun=All"},
		{"an escaped name", "/kthwd-term/7/api/v1/a%2Fb", ours, "127.0.0.1:1", true, "/api/v1/a%2Fb"},
		{"somebody else's alias", "/kthwd-term/7/api/v1/pods", "curl", "127.0.0.1:1", true, "/kthwd-term/7/api/v1/pods"},
		{"an alias from elsewhere", "/kthwd-term/7/api/v1/pods", ours, "10.0.1.35:1", true, "/kthwd-term/7/api/v1/pods"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.ControllerManager.only.Store(0)
			if tt.leaked {
				f.ControllerManager.admitOnly(7)
			}
			served = nil
			req := httptest.NewRequest(http.MethodPost, tt.path, nil)
			req.RemoteAddr = tt.from
			req.Header.Set("User-Agent", tt.agent)
			chain.ServeHTTP(httptest.NewRecorder(), req)
			switch {
			case served == nil && tt.seen != "":
				t.Error("refused")
			case served != nil && (served.RequestURI != tt.seen || served.URL.RequestURI() != tt.seen):
				t.Errorf("the API server sees %q and %q, want %q", served.RequestURI, served.URL.RequestURI(), tt.seen)
			}
		})
	}
}

// heldLock is a lease lock on a lease that anybody may have taken meanwhile.
type heldLock struct {
	fakeLock
	holder string
}

func (l *heldLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	return &resourcelock.LeaderElectionRecord{HolderIdentity: l.holder}, nil, nil
}

func (l *heldLock) Update(_ context.Context, r resourcelock.LeaderElectionRecord) error {
	l.holder = r.HolderIdentity
	return nil
}

// A lease that another controller has taken is not given back by the one that has lost it.
func TestOnlyTheOwnLeaseIsGivenBack(t *testing.T) {
	for holder, want := range map[string]string{"c0_1": "", "c1_1": "c1_1", "": ""} {
		inner := &heldLock{holder: holder}
		lock := (&Fence{limit: 10 * time.Second}).lock(inner, func(error) {})
		if _, _, err := lock.Get(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := lock.Update(t.Context(), resourcelock.LeaderElectionRecord{}); err != nil {
			t.Fatal(err)
		}
		if inner.holder != want {
			t.Errorf("held by %q: after the release the holder is %q, want %q", holder, inner.holder, want)
		}
	}
}
