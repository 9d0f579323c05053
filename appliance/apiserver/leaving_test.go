package apiserver

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

func TestFarewellInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f departure
		look := func(want string) {
			t.Helper()
			synctest.Wait()
			w := httptest.NewRecorder()
			f.wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			if got := fmt.Sprintf("readyz=%v last=%q", f.readyz().Check(nil) == nil, w.Header().Get("Connection")); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		look(`readyz=true last=""`)
		f.notReady.Store(true)
		f.closeAfter(4 * time.Second)
		look(`readyz=false last=""`)
		time.Sleep(2*time.Second - time.Nanosecond)
		look(`readyz=false last=""`)
		time.Sleep(time.Nanosecond)
		look(`readyz=false last="close"`)
	})
	synctest.Test(t, func(t *testing.T) {
		var f departure
		f.closeAfter(0) // where there is nobody else to go to
		time.Sleep(time.Hour)
		if f.closing.Load() {
			t.Error("clients are sent away without a delay")
		}
	})
}

// Requests end when they are cut off, and those of the stop have a little time. Those that run
// long are left alone, unless the server was never ready.
func TestCutoff(t *testing.T) {
	for _, ready := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var f departure
			f.servedOnce.Store(ready)
			kinds := &genericapiserver.Config{LongRunningFunc: func(_ *http.Request, info *apirequest.RequestInfo) bool { return info.Verb == "watch" }}
			request := func(verb string) (took func() time.Duration) {
				begun, done := time.Now(), make(chan time.Duration, 1)
				ctx := apirequest.WithRequestInfo(t.Context(), &apirequest.RequestInfo{Verb: verb})
				go f.cuttable(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
					select {
					case <-req.Context().Done():
					case <-time.After(time.Hour):
					}
					done <- time.Since(begun)
				}), kinds).ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil))
				return func() time.Duration { return <-done }
			}
			before, watch := request("create"), request("watch")
			time.AfterFunc(time.Minute, f.requests.cut)
			if got := before(); got != time.Minute {
				t.Errorf("a request before the cut: got %v, want until the cut after %v", got, time.Minute)
			}
			if got := request("create")(); got != lastWords {
				t.Errorf("a request of the stop: got %v, want %v", got, lastWords)
			}
			if got, want := watch(), map[bool]time.Duration{false: time.Minute, true: time.Hour}[ready]; got != want {
				t.Errorf("a watch, ready %v: got %v, want %v", ready, got, want)
			}
			synctest.Wait()
			if n := len(f.requests.known); n != 0 {
				t.Errorf("%d requests are remembered", n)
			}
		})
	}
}

// Clients of either protocol leave without an error: a request that is under way
// ends well, and the next one has a new connection.
func TestFarewellEndsConnections(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(strings.ReplaceAll(protocol, "/", " "), func(t *testing.T) {
			var f departure
			inside, finish := make(chan bool), make(chan bool)
			s := httptest.NewUnstartedServer(f.wrap(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/slow" {
					inside <- true
					<-finish
				}
				io.WriteString(w, req.Proto)
			})))
			s.EnableHTTP2 = protocol == "HTTP/2.0"
			s.StartTLS()
			defer s.Close()
			client := s.Client()
			client.Transport.(*http.Transport).TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			var dials atomic.Int64
			get := func(path string) error {
				trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
					if !c.Reused {
						dials.Add(1)
					}
				}})
				req, _ := http.NewRequestWithContext(trace, http.MethodGet, s.URL+path, nil)
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				if body, err := io.ReadAll(resp.Body); err != nil || string(body) != protocol {
					return errors.Join(fmt.Errorf("got %q", body), err)
				}
				return nil
			}
			want := func(when string, n int64) {
				t.Helper()
				if err := get("/"); err != nil || dials.Load() != n {
					t.Errorf("%s: got %v and %d connections so far, want %d", when, err, dials.Load(), n)
				}
			}
			want("first", 1)
			want("second", 1)
			slow := make(chan error)
			go func() { slow <- get("/slow") }()
			<-inside
			before := int64(1)
			if protocol == "HTTP/1.1" {
				before = 2 // the slow one has its connection alone
			}
			want("beside the slow one", before)
			f.closing.Store(true)
			want("the last one on this connection", before)
			want("after it", before+1)
			close(finish)
			if err := <-slow; err != nil {
				t.Errorf("the request that was under way: %v", err)
			}
		})
	}
}

func TestFarewellLetsOtherProtocolsBe(t *testing.T) {
	var f departure
	f.closing.Store(true)
	req, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
	req.Header.Set("Upgrade", "websocket")
	f.wrap(http.NotFoundHandler()).ServeHTTP(w, req)
	if got := w.Header().Get("Connection"); got != "" {
		t.Errorf("Connection: got %q, want none", got)
	}
}
