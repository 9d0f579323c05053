package rbacseed

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"
)

// patience bounds every wait of these tests; none waits that long when it passes.
const patience = time.Minute

var clusterroles = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}

// TestManifestsAreTheTutorials holds that the manifests are the tutorial's heredocs, to
// the letter, but for the API version.
func TestManifestsAreTheTutorials(t *testing.T) {
	for _, name := range []string{"clusterrole", "clusterrolebinding"} {
		tutorial, err := os.ReadFile("testdata/tutorial-" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := manifests.ReadFile("manifests/" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(string(tutorial), "rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1", 1)
		if diff := cmp.Diff(want, string(manifest)); diff != "" {
			t.Errorf("%s (-tutorial +manifest):\n%s", name, diff)
		}
	}
}

func TestUser(t *testing.T) {
	for user, want := range map[string]string{
		"":                                "kubernetes",
		"kubernetes":                      "kubernetes",
		"kube-apiserver-kubelet-client":   "kube-apiserver-kubelet-client",
		"name: \"with yaml\"\n- in it: 1": "name: \"with yaml\"\n- in it: 1",
	} {
		role, binding, err := objects(user)
		if err != nil {
			t.Fatal(err)
		}
		subjects := []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: want}}
		if diff := cmp.Diff(subjects, binding.Subjects); diff != "" {
			t.Errorf("user %q: subjects (-want +got):\n%s", user, diff)
		}
		if binding.RoleRef.Name != role.Name {
			t.Errorf("user %q: the binding is to %s; want %s", user, binding.RoleRef.Name, role.Name)
		}
	}
}

// TestAgainstStandIn runs the cases against the stand-in; see there.
func TestAgainstStandIn(t *testing.T) { semantics(t, newStandIn(t).config()) }

// TestConflict has others win: once, which is made good, and for ever, which is not.
func TestConflict(t *testing.T) {
	s := newStandIn(t)
	client := newClient(t, s.config())
	if _, err := Apply(t.Context(), client, ""); err != nil {
		t.Fatal(err)
	}
	c := cluster{t, t.Context(), client}
	c.changeRole(func(r *rbacv1.ClusterRole) { r.Rules = nil })

	conflict := apierrors.NewConflict(clusterroles, roleName, errors.New("modified"))
	var lost atomic.Int32
	lose := func(times int32) {
		lost.Store(0)
		s.will(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || lost.Add(1) > times {
				return false
			}
			reply(w, http.StatusConflict, conflict.ErrStatus)
			return true
		})
	}
	lose(100)
	result, err := Apply(t.Context(), client, "")
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "clusterrole "+roleName+": ") {
		t.Errorf("Apply = %+v, %v; want a conflict on the role", result, err)
	}
	if n := lost.Load(); n != 6 {
		t.Errorf("%d attempts; want 6", n)
	}
	lose(2)
	c.apply(Result{Role: Updated, Binding: Unchanged})
	c.wantSeed()
}

// TestRunWaits starts the seed without an apiserver, then with one that refuses, and
// holds that each reason is logged once and ready called when it is through.
func TestRunWaits(t *testing.T) {
	s := newStandIn(t)
	forbidden := apierrors.NewForbidden(clusterroles, roleName, errors.New("no such right"))
	s.refuse(forbidden)

	var attempts atomic.Int32
	nobody := unusedAddress(t)
	log := &lockedBuilder{}
	r := start(t, Config{
		Log: slog.New(slog.NewTextHandler(log, nil)),
		Client: func() (rbacv1client.RbacV1Interface, error) {
			switch n := attempts.Add(1); {
			case n <= 2:
				return nil, errors.New("apiserver is starting")
			case n <= 4:
				return rbacv1client.NewForConfig(&rest.Config{Host: nobody})
			case n == 7: // forbidden twice
				s.will(nil)
			}
			return rbacv1client.NewForConfig(s.config())
		},
	})
	r.waitReady(patience)
	cluster{t, t.Context(), newClient(t, s.config())}.wantSeed()
	r.stop()

	if n := attempts.Load(); n != 7 {
		t.Errorf("%d attempts; want 7 and none after", n)
	}
	for text, want := range map[string]int{
		"apiserver is starting": 1, "connection refused": 1, "no such right": 1,
		"not applied yet": 3, "rbac seed applied": 1,
	} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("%q is logged %d times; want %d:\n%s", text, got, want, log)
		}
	}
}

// TestRunWarns holds that rights beyond the seed, and a seed that opted out, are told.
func TestRunWarns(t *testing.T) {
	s := newStandIn(t)
	client := newClient(t, s.config())
	c := cluster{t, t.Context(), client}
	c.apply(Result{Role: Created, Binding: Created})
	c.changeRole(func(r *rbacv1.ClusterRole) {
		r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
		r.Rules[0].Resources = []string{"secrets"}
	})
	log := &lockedBuilder{}
	r := start(t, Config{
		Log:    slog.New(slog.NewTextHandler(log, nil)),
		Client: func() (rbacv1client.RbacV1Interface, error) { return client, nil },
	})
	r.waitReady(patience)
	r.stop()
	for _, want := range []string{`clusterrole="left alone"`, "is left alone", "has been extended", "rules=1"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

// TestRunStops holds that the seed lets go of an apiserver that hangs, and of one that
// never was, without a word of ready.
func TestRunStops(t *testing.T) {
	s := newStandIn(t)
	asked, over := make(chan struct{}, 1), make(chan struct{})
	s.will(func(w http.ResponseWriter, r *http.Request) bool {
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-r.Context().Done():
		case <-over:
		}
		return true
	})
	defer close(over)
	hung := start(t, Config{Client: func() (rbacv1client.RbacV1Interface, error) { return newClient(t, s.config()), nil }})
	<-asked
	hung.stop()

	tried := make(chan struct{}, 100)
	absent := start(t, Config{Client: func() (rbacv1client.RbacV1Interface, error) {
		tried <- struct{}{}
		return nil, errors.New("not yet")
	}})
	<-tried
	absent.stop()
	for name, r := range map[string]*running{"hung": hung, "absent": absent} {
		if r.readies.Load() != 0 {
			t.Errorf("%s: ready was called", name)
		}
	}
}

func TestRunWithoutClient(t *testing.T) {
	if err := New(Config{}).Run(t.Context(), func() { t.Error("ready called") }); err == nil {
		t.Error("Run = nil; want an error")
	}
}

// A running is a seed that runs.
type running struct {
	t       *testing.T
	cancel  context.CancelFunc
	ready   chan struct{}
	readies atomic.Int32
	result  chan error
}

// start runs a seed with short pauses and stops it at the end of the test.
func start(t *testing.T, cfg Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, cancel: cancel, ready: make(chan struct{}, 10), result: make(chan error, 1)}
	s := New(cfg)
	s.firstPause = time.Millisecond
	go func() {
		r.result <- s.Run(ctx, func() { r.readies.Add(1); r.ready <- struct{}{} })
	}()
	t.Cleanup(r.stop)
	return r
}

func (r *running) waitReady(d time.Duration) {
	r.t.Helper()
	select {
	case <-r.ready:
	case err := <-r.result:
		r.t.Fatalf("Run returned %v before ready", err)
	case <-time.After(d):
		r.t.Fatalf("not ready after %v", d)
	}
}

// stop ends the seed, which must have blocked until now and return nil at once.
func (r *running) stop() {
	r.t.Helper()
	select {
	case err := <-r.result:
		if r.cancel != nil {
			r.t.Errorf("Run returned %v on its own", err)
		}
		r.result <- nil
		return
	default:
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.result:
		if err != nil {
			r.t.Errorf("Run = %v; want nil", err)
		}
		r.result <- nil // stop may be called again
	case <-time.After(patience):
		r.t.Error("Run did not return")
	}
	if n := r.readies.Load(); n > 1 {
		r.t.Errorf("ready was called %d times", n)
	}
}

func newClient(t *testing.T, cfg *rest.Config) rbacv1client.RbacV1Interface {
	t.Helper()
	client, err := rbacv1client.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// unusedAddress is the URL of a port where nobody listens any more.
func unusedAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	return "http://" + ln.Addr().String()
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var _ interface {
	Name() string
	Run(ctx context.Context, ready func()) error
} = (*Seed)(nil)
