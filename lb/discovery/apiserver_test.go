package discovery

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kthwd/test/harness"
)

// apiServer serves the requests of this package over TLS: list and watch of
// endpointslices. The test sets its content and its faults.
type apiServer struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	version int
	slices  map[string]*discoveryv1.EndpointSlice
	watches map[chan event]bool
	refuse  map[string]metav1.Status // answers to "list" and "watch"
	lists   int
	opened  chan struct{} // one for each watch that begins
}

type event struct {
	Type   watch.EventType `json:"type"`
	Object any             `json:"object"`
}

// hangsUp is a status that stands for closing the connection without an answer.
const hangsUp = -1

const token = "a token"

func newAPIServer(t *testing.T) *apiServer {
	s := &apiServer{t: t, version: 100, slices: map[string]*discoveryv1.EndpointSlice{}, watches: map[chan event]bool{},
		refuse: map[string]metav1.Status{}, opened: make(chan struct{}, 1000)}
	s.Server = httptest.NewUnstartedServer(s)
	s.Server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.StartTLS()
	t.Cleanup(s.stop)
	return s
}

// stop ends the server and its connections, as a kill does.
func (s *apiServer) stop() {
	s.Listener.Close() // first, or a client is back with a watch that Close waits for
	s.cut()
	s.CloseClientConnections()
	s.Close()
}

// address is HOST:PORT.
func (s *apiServer) address() string { return s.Listener.Addr().String() }

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	switch {
	case r.Header.Get("Authorization") != "Bearer "+token:
		answer(w, metav1.Status{Code: 401, Reason: metav1.StatusReasonUnauthorized})
	case r.URL.Path != "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices" || q.Get("labelSelector") != "kubernetes.io/service-name=kubernetes":
		s.t.Errorf("asked for %s", r.URL)
		answer(w, metav1.Status{Code: 404, Reason: metav1.StatusReasonNotFound})
	case q.Get("watch") != "":
		s.watch(w, r)
	default:
		s.list(w)
	}
}

func answer(w http.ResponseWriter, s metav1.Status) {
	s.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	s.Status = metav1.StatusFailure
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(s.Code))
	_ = json.NewEncoder(w).Encode(s)
}

func (s *apiServer) list(w http.ResponseWriter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	if refusal, ok := s.refuse["list"]; ok {
		answer(w, refusal)
		return
	}
	list := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}}
	list.ResourceVersion = strconv.Itoa(s.version)
	for _, slice := range s.slices {
		list.Items = append(list.Items, *slice)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list)
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	refusal, refused := s.refuse["watch"]
	if refused && refusal.Code == hangsUp {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	if refused {
		s.mu.Unlock()
		answer(w, refusal)
		return
	}
	if from := r.URL.Query().Get("resourceVersion"); from != strconv.Itoa(s.version) {
		s.t.Errorf("watch from version %s, want %d", from, s.version)
	}
	events := make(chan event, 10)
	s.watches[events] = true
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	s.opened <- struct{}{}
	for {
		select {
		case e, more := <-events:
			if !more {
				return
			}
			_ = json.NewEncoder(w).Encode(e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			s.mu.Lock()
			delete(s.watches, events)
			s.mu.Unlock()
			return
		}
	}
}

// put creates or changes a slice, and sends the event to all watches.
func (s *apiServer) put(slice *discoveryv1.EndpointSlice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	slice.ResourceVersion = strconv.Itoa(s.version)
	kind := watch.Added
	if s.slices[slice.Name] != nil {
		kind = watch.Modified
	}
	s.slices[slice.Name] = slice
	s.tell(event{kind, slice})
}

func (s *apiServer) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	slice := s.slices[name].DeepCopy()
	slice.ResourceVersion = strconv.Itoa(s.version)
	delete(s.slices, name)
	s.tell(event{watch.Deleted, slice})
}

// tell needs the lock.
func (s *apiServer) tell(e event) {
	for events := range s.watches {
		events <- e
	}
}

// cut ends all watches.
func (s *apiServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for events := range s.watches {
		close(events)
		delete(s.watches, events)
	}
}

// forget makes the server one that lacks the history that a watch needs.
func (s *apiServer) expireVersions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version += 100
	gone := metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired, Message: "too old resource version"}
	s.tell(event{watch.Error, gone})
	for events := range s.watches {
		close(events)
		delete(s.watches, events)
	}
}

// refuses makes it answer list or watch with a status; 0 ends that.
func (s *apiServer) refuses(verb string, code int32, reason metav1.StatusReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.refuse, verb)
	if code != 0 {
		s.refuse[verb] = metav1.Status{Code: code, Reason: reason, Message: "because of the test"}
	}
}

func (s *apiServer) listed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists
}

// slice is an EndpointSlice like kube-apiserver's own. An address with a ! is not ready.
func slice(name string, addresses ...string) *discoveryv1.EndpointSlice {
	port, https, kind := int32(6443), "https", discoveryv1.AddressTypeIPv4
	s := &discoveryv1.EndpointSlice{
		TypeMeta:   metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &https, Port: &port}},
	}
	for _, a := range addresses {
		a, notReady := strings.CutPrefix(a, "!")
		ready := !notReady
		if strings.Contains(a, ":") {
			kind = discoveryv1.AddressTypeIPv6
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	s.AddressType = kind
	return s
}

// kubeconfig writes one for the server, as kubectl config would.
func (s *apiServer) kubeconfig(change ...func(*api.Config)) string {
	s.t.Helper()
	c := api.NewConfig()
	c.Clusters["kubernetes"] = &api.Cluster{Server: s.URL, CertificateAuthorityData: s.ca()}
	c.AuthInfos["lb"] = &api.AuthInfo{Token: token}
	c.Contexts["lb"] = &api.Context{Cluster: "kubernetes", AuthInfo: "lb"}
	c.CurrentContext = "lb"
	for _, f := range change {
		f(c)
	}
	path := filepath.Join(s.t.TempDir(), "lb.kubeconfig")
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *apiServer) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// at makes the kubeconfig name another server.
func at(url string) func(*api.Config) {
	return func(c *api.Config) { c.Clusters["kubernetes"].Server = url }
}

// deaf is an address where nothing listens.
func deaf(t *testing.T) string {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	return s.Listener.Addr().String()
}

// following is a running Discovery with its lists and its log.
type following struct {
	*Discovery
	*harness.Running
	t     *testing.T
	lists chan string // each list received, joined with commas
	log   *harness.Log
}

// follow runs a Discovery with short pauses until the test ends.
func follow(t *testing.T, c Config) *following {
	t.Helper()
	f := make_(t, c)
	f.run()
	return f
}

func make_(t *testing.T, c Config) *following {
	t.Helper()
	f := &following{t: t, lists: make(chan string, 100), log: &harness.Log{}}
	c.Log = f.log.Logger(slog.LevelDebug)
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	f.Discovery = d
	d.pause = pause{least: time.Millisecond, most: 10 * time.Millisecond}
	d.OnList(func(list []string) error { f.lists <- strings.Join(list, ","); return nil })
	return f
}

// run runs it, and prints the log at the end of a test that failed.
func (f *following) run() {
	f.t.Cleanup(func() {
		if f.t.Failed() {
			f.t.Logf("log:\n%s", f.log)
		}
	})
	f.Running = harness.Start(f.t, f.Discovery)
}

// want waits for the next list.
func (f *following) want(list string) {
	f.t.Helper()
	select {
	case got := <-f.lists:
		if got != list {
			f.t.Errorf("list: got %s, want %s", got, list)
		}
	case <-time.After(time.Minute):
		f.t.Fatalf("list: got none, want %s", list)
	}
}

// wantNone fails if a list has come.
func (f *following) wantNone() {
	f.t.Helper()
	select {
	case got := <-f.lists:
		f.t.Errorf("list: got %s, want none", got)
	default:
	}
}

// says waits for a line in the log.
func (f *following) says(want string) {
	f.t.Helper()
	eventually(f.t, "log: "+want, func() error {
		if !strings.Contains(f.log.String(), want) {
			return fmt.Errorf("not yet:\n%s", f.log)
		}
		return nil
	})
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	harness.WaitFor(t, what, time.Minute, f)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
