package upstream

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"

	"kthwd/test/harness"
)

// http2Server is an API server's listener that counts its open connections. It answers /slow only
// when release is closed.
func http2Server(t *testing.T, release <-chan struct{}) (config *rest.Config, open *atomic.Int32) {
	t.Helper()
	open = &atomic.Int32{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-release
		}
		fmt.Fprint(w, r.Proto)
	}))
	s.EnableHTTP2 = true
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Add(-1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	own, key, err := cert.GenerateSelfSignedCertKey("client.test", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{
		CAData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), CertData: own, KeyData: key,
	}}, open
}

// get asks for a path over HTTP/2 and returns the body, which may be read later.
func get(t *testing.T, config *rest.Config, path string) io.ReadCloser {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get(config.Host + path)
	if err != nil {
		t.Fatal(err)
	}
	if resp.ProtoMajor != 2 {
		t.Fatalf("got %s", resp.Proto)
	}
	return resp.Body
}

func await(t *testing.T, open *atomic.Int32, want int32) {
	t.Helper()
	harness.WaitFor(t, fmt.Sprintf("%d connections", want), time.Minute, func() error {
		if n := open.Load(); n != want {
			return fmt.Errorf("got %d", n)
		}
		return nil
	})
}

// Every kind of client that kube-controller-manager has hangs up, but not in the middle of an
// answer.
func TestHangUp(t *testing.T) {
	release := make(chan struct{})
	config, open := http2Server(t, release)
	plain := rest.CopyConfig(config)
	plain.DisableCompression = true
	bearer := rest.AnonymousClientConfig(plain)
	bearer.BearerToken = "token"
	all := ConnectionsOf(config)
	for _, c := range []*rest.Config{config, plain, bearer} {
		body := get(t, c, "/")
		if _, err := io.Copy(io.Discard, body); err != nil {
			t.Fatal(err)
		}
		body.Close()
	}
	runtime.GC() // what nobody holds is forgotten now, in this test by luck otherwise
	runtime.GC()
	await(t, open, 3)
	slow := get(t, plain, "/slow")
	defer slow.Close()
	// A client's connection is idle some time after its answer: net/http forgets a stream of HTTP/2
	// in another goroutine than the one that has read the end of the body.
	harness.WaitFor(t, "all to hang up but the one in the middle of an answer", time.Minute, func() error {
		all.HangUp()
		if n := open.Load(); n != 1 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		all.KeepHangingUp(ctx)
	}()
	close(release)
	if text, err := io.ReadAll(slow); err != nil || string(text) != "HTTP/2.0" {
		t.Errorf("the answer that was under way: %q, %v", text, err)
	}
	await(t, open, 0)
	cancel()
	<-ended
}
