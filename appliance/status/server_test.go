package status

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kthwd/appliance/logging"
)

// start runs a server until the test ends. stop ends it earlier and returns the result
// of Run.
func start(t *testing.T, c ServerConfig) (stop func() error) {
	t.Helper()
	if c.Logs == nil {
		c.Logs, _ = logging.New(io.Discard, logging.Text, nil)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, gone := make(chan struct{}), make(chan error, 1)
	go func() { gone <- NewServer(c).Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-gone:
		t.Fatalf("ended before it was ready: %v", err)
	}
	stop = func() error {
		cancel()
		err := <-gone
		gone <- err
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

// free returns an address whose port was free a moment ago.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestServer(t *testing.T) {
	var draining, serves atomic.Bool
	own := prometheus.NewCounter(prometheus.CounterOpts{Name: "kthwd_lb_something_total", Help: "x"})
	addr, socket := free(t), filepath.Join(t.TempDir(), "s")
	stop := start(t, ServerConfig{
		Socket: socket, Address: addr, Collectors: []prometheus.Collector{own},
		Report: func() Report {
			if draining.Load() {
				return reports()["lb-trouble"]
			}
			r := reports()["lb"]
			r.LB.Serves = serves.Load()
			return r
		},
	})
	for path, want := range map[string]string{
		"/readyz": "ok\n", "/livez": "ok\n", "/status": `"backends": [`,
		"/metrics": "kthwd_lb_something_total 0\n",
	} {
		if code, body := get(t, "http://"+addr+path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: got %d %.300s", path, code, body)
		}
	}
	_, metrics := get(t, "http://"+addr+"/metrics")
	for _, want := range []string{
		`kthwd_build_info{etcd="",go="go1`, "kthwd_ready 1\n", `kthwd_component_state{component="lb",state="ready"} 1` + "\n",
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(metrics, "kthwd_etcd") {
		t.Error("metrics have an etcd, which is not there")
	}
	// Of these reports no load balancer serves; the process is ready all the same.
	if code, body := get(t, "http://"+addr+"/readyz?backends"); code != 503 || body != "lb: no backend can be given connections\n" {
		t.Errorf("/readyz?backends: got %d %q", code, body)
	}
	serves.Store(true)
	if code, body := get(t, "http://"+addr+"/readyz?backends"); code != 200 {
		t.Errorf("/readyz?backends of one that serves: got %d %q", code, body)
	}
	draining.Store(true)
	if code, body := get(t, "http://"+addr+"/readyz?backends"); code != 503 || body != "lb: draining\n" {
		t.Errorf("/readyz?backends, draining: got %d %q", code, body)
	}
	if code, body := get(t, "http://"+addr+"/readyz"); code != 503 || body != "lb: draining\n" {
		t.Errorf("/readyz, draining: got %d %q", code, body)
	}
	if code, _ := get(t, "http://"+addr+"/livez"); code != 200 {
		t.Errorf("/livez, draining: got %d", code)
	}

	// Levels are for the owner of the socket.
	if code, _ := get(t, "http://"+addr+"/log-level"); code != 404 {
		t.Errorf("/log-level on the metrics address: got %d, want 404", code)
	}
	levels, err := Client{Socket: socket}.SetLevels(t.Context(), "lb=debug")
	if err != nil || levels["lb"] != "debug" {
		t.Errorf("SetLevels: got %v, %v", levels, err)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := net.Dial("tcp", addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the stop: got %v", err)
	}
}

func TestServerAddressInUse(t *testing.T) {
	logs, _ := logging.New(io.Discard, logging.Text, nil)
	other := free(t)
	start(t, ServerConfig{Address: other, Shared: func(Report) bool { return true }, Report: func() Report { return Report{PID: 17} }})
	for name, shared := range map[string]func(Report) bool{
		"alone":                 nil,
		"another load balancer": func(r Report) bool { return r.PID != 17 },
	} {
		c := ServerConfig{Address: other, Logs: logs, Shared: shared, Report: func() Report { return Report{} }}
		if err := NewServer(c).Run(t.Context(), func() { t.Error("ready") }); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A new process opens the address beside the old one. It answers requests only once it
// is ready.
func TestServerTakesOver(t *testing.T) {
	addr := free(t)
	yes := func(Report) bool { return true }
	old := start(t, ServerConfig{Address: addr, Shared: yes, Report: func() Report { return Report{PID: 1, Ready: true} }})
	hold := make(chan struct{})
	var ready atomic.Bool
	start(t, ServerConfig{Address: addr, Shared: yes, Hold: hold, Report: func() Report { return Report{PID: 2, Ready: ready.Load()} }})
	answers := make(chan int)
	const many = 20 // the kernel gives some of them to each process
	for range many {
		go func() {
			code, _ := get(t, "http://"+addr+"/readyz")
			answers <- code
		}()
	}
	ready.Store(true)
	close(hold)
	for range many {
		if code := <-answers; code != 200 {
			t.Errorf("got %d", code)
		}
	}
	if err := old(); err != nil {
		t.Errorf("the old one: %v", err)
	}
	if _, body := get(t, "http://"+addr+"/status"); !strings.Contains(body, `"pid": 2`) {
		t.Errorf("after the old one: got %s", body)
	}
}
