package rbacseed

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// A standIn is a small HTTP server that keeps cluster roles and bindings the way the
// apiserver does. A real apiserver cannot be linked here, because the package must
// compile in seconds. The house rule is "no mocks of what can be run", so every case of
// semantics_test.go also runs against a real one (seed_integration_test.go, and in
// test/e2e). client-go's fake clientset does not suffice: it has no resource versions, no
// UID preconditions and no immutable roleRef, which the cases test, and it bypasses the
// network. Unlike a real apiserver, the stand-in can refuse, fail or hang at a given
// request.
type standIn struct {
	*httptest.Server

	mu      sync.Mutex
	version int
	objects map[string]map[string]any // by plural/name

	// fault may answer a request in the server's place. It is called unlocked.
	fault func(w http.ResponseWriter, r *http.Request) bool
}

func newStandIn(t *testing.T) *standIn {
	t.Helper()
	s := &standIn{objects: map[string]map[string]any{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// config points to the stand-in, which uses JSON; the default is protobuf.
func (s *standIn) config() *rest.Config {
	return &rest.Config{Host: s.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
}

// will sets the fault; nil ends it.
func (s *standIn) will(fault func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

// refuse answers with err until the fault is taken away.
func (s *standIn) refuse(err *apierrors.StatusError) {
	s.will(func(w http.ResponseWriter, r *http.Request) bool {
		reply(w, int(err.ErrStatus.Code), err.ErrStatus)
		return true
	})
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	fault := s.fault
	s.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/apis/rbac.authorization.k8s.io/v1/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	plural, name, _ := strings.Cut(rest, "/")
	var body map[string]any
	if r.ContentLength != 0 {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if r.Method == http.MethodPost {
		name = field(body, "name")
	}
	obj, err := s.handle(r.Method, schema.GroupResource{Group: "rbac.authorization.k8s.io", Resource: plural}, name, body)
	if err != nil {
		reply(w, int(err.ErrStatus.Code), err.ErrStatus)
		return
	}
	code := http.StatusOK
	if r.Method == http.MethodPost {
		code = http.StatusCreated
	}
	reply(w, code, obj)
}

// handle does one request to the store.
func (s *standIn) handle(method string, gr schema.GroupResource, name string, in map[string]any) (map[string]any, *apierrors.StatusError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := gr.Resource + "/" + name
	old, found := s.objects[key]
	switch {
	case method == http.MethodPost && found:
		return nil, apierrors.NewAlreadyExists(gr, name)
	case method == http.MethodPost:
		return s.store(key, in, fmt.Sprintf("uid-%d", s.version)), nil
	case method == http.MethodPut && (!found || field(old, "resourceVersion") != field(in, "resourceVersion")):
		return nil, apierrors.NewConflict(gr, name, fmt.Errorf("the object has been modified"))
	case !found:
		return nil, apierrors.NewNotFound(gr, name)
	case method == http.MethodGet:
		return old, nil
	case method == http.MethodPut && !cmp.Equal(old["roleRef"], in["roleRef"]):
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: gr.Group}, name, nil)
	case method == http.MethodPut:
		return s.store(key, in, field(old, "uid")), nil
	case method == http.MethodDelete:
		if uid, ok := preconditionUID(in); ok && uid != field(old, "uid") {
			return nil, apierrors.NewConflict(gr, name, fmt.Errorf("precondition failed: UID"))
		}
		delete(s.objects, key)
		return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"}, nil
	}
	return nil, apierrors.NewMethodNotSupported(gr, method)
}

func (s *standIn) store(key string, obj map[string]any, uid string) map[string]any {
	s.version++
	meta := obj["metadata"].(map[string]any)
	meta["uid"], meta["resourceVersion"] = uid, strconv.Itoa(s.version)
	s.objects[key] = obj
	return obj
}

// field is a field of an object's metadata.
func field(obj map[string]any, name string) string {
	meta, _ := obj["metadata"].(map[string]any)
	v, _ := meta[name].(string)
	return v
}

func preconditionUID(options map[string]any) (string, bool) {
	pre, _ := options["preconditions"].(map[string]any)
	uid, ok := pre["uid"].(string)
	return uid, ok
}

func reply(w http.ResponseWriter, code int, v any) {
	if status, ok := v.(metav1.Status); ok {
		status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		v = status
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}
