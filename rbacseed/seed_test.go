package rbacseed

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	rbacv1client "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/client-go/rest"

	"kthwd/test/harness"
)

// patience limits every wait of these tests; none waits that long when it passes.
const patience = time.Minute

var clusterroles = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}

// TestManifestsAreTheTutorials: the manifests are the tutorial's heredocs, to the letter,
// except for the API version.
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

// TestConflict: two lost races are retried; losing every race is an error.
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

// TestRunWaits starts the seed without an apiserver, then with one that refuses. Each
// reason is logged once, and ready is called when the seed is applied.
func TestRunWaits(t *testing.T) {
	s := newStandIn(t)
	forbidden := apierrors.NewForbidden(clusterroles, roleName, errors.New("no such right"))
	s.refuse(forbidden)

	var attempts atomic.Int32
	nobody := unusedAddress(t)
	log := &harness.Log{}
	r := start(t, Config{
		Log: log.Logger(slog.LevelInfo),
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
	r.WaitReady(patience)
	cluster{t, t.Context(), newClient(t, s.config())}.wantSeed()
	r.Stop()

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

// TestRunWarns: extra rights, and an object that opts out, are logged.
func TestRunWarns(t *testing.T) {
	s := newStandIn(t)
	client := newClient(t, s.config())
	c := cluster{t, t.Context(), client}
	c.apply(Result{Role: Created, Binding: Created})
	c.changeRole(func(r *rbacv1.ClusterRole) {
		r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
		r.Rules[0].Resources = []string{"secrets"}
	})
	log := &harness.Log{}
	r := start(t, Config{
		Log:    log.Logger(slog.LevelInfo),
		Client: func() (rbacv1client.RbacV1Interface, error) { return client, nil },
	})
	r.WaitReady(patience)
	r.Stop()
	for _, want := range []string{`clusterrole="left alone"`, "is left alone", "has been extended", "rules=1"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

// TestRunStops: the seed stops while the apiserver hangs, and while there is none, without
// calling ready.
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
	hung.Stop()

	tried := make(chan struct{}, 100)
	absent := start(t, Config{Client: func() (rbacv1client.RbacV1Interface, error) {
		tried <- struct{}{}
		return nil, errors.New("not yet")
	}})
	<-tried
	absent.Stop()
	for name, r := range map[string]*harness.Running{"hung": hung, "absent": absent} {
		if r.IsReady() {
			t.Errorf("%s: ready was called", name)
		}
	}
}

func TestRunWithoutClient(t *testing.T) {
	if err := New(Config{}).Run(t.Context(), func() { t.Error("ready called") }); err == nil {
		t.Error("Run = nil; want an error")
	}
}

// start runs a seed with short pauses and stops it at the end of the test.
func start(t *testing.T, cfg Config) *harness.Running {
	t.Helper()
	s := New(cfg)
	s.firstPause = time.Millisecond
	return harness.Start(t, s)
}

func newClient(t *testing.T, cfg *rest.Config) rbacv1client.RbacV1Interface {
	t.Helper()
	client, err := rbacv1client.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// unusedAddress returns the URL of a port without a listener.
func unusedAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	return "http://" + ln.Addr().String()
}

var _ interface {
	Name() string
	Run(ctx context.Context, ready func()) error
} = (*Seed)(nil)
