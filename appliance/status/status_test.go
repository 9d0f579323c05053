package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kthwd/appliance/advice"
	"kthwd/appliance/supervise"
	"kthwd/lb"
	"kthwd/test/harness"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func reports() map[string]Report {
	ready := Report{
		Version: "v0.1.0", Kubernetes: "v1.36.3", Etcd: "3.6.16", PID: 4711, Started: noon.Add(-51 * time.Hour), Ready: true,
		Components: []supervise.Status{
			{Name: "health", State: supervise.Ready, Since: noon.Add(-51 * time.Hour)},
			{Name: "etcd", State: supervise.Ready, Since: noon.Add(-50 * time.Hour)},
			{Name: "kube-apiserver", State: supervise.Ready, Since: noon.Add(-125 * time.Minute)},
			{Name: "kube-controller-manager", State: supervise.Ready, Since: noon.Add(-65 * time.Second), Restarts: 2, LastError: "lease lost:\ncontext deadline exceeded"},
			{Name: "kube-scheduler", State: supervise.Ready, Since: noon.Add(-3 * time.Second)},
		},
		Quorum: &Quorum{Members: 3, Needed: 2, Active: 3, Leader: "one"},
	}
	waiting := ready
	waiting.Ready, waiting.Reason = false, "etcd: waiting for etcd quorum (1 of 3)"
	waiting.Components = append([]supervise.Status{}, ready.Components...)
	waiting.Components[1].State, waiting.Components[1].Reason = supervise.Waiting, "waiting for etcd quorum (1 of 3)"
	waiting.Components[3].State, waiting.Components[3].Reason = supervise.Standby, "two holds the lease"
	waiting.Components[4].State = supervise.Failed
	waiting.Quorum = &Quorum{Members: 3, Needed: 2, Active: 1, Note: "two and three do not answer"}
	all := map[string]Report{"ready": ready, "waiting": waiting, "starting": {Version: "v0.1.0", Kubernetes: "v1.36.3", Etcd: "3.6.16", PID: 1, Started: noon}}

	balances := Report{
		Version: "v0.1.0", PID: 815, Started: noon.Add(-90 * time.Minute), Ready: true,
		Components: []supervise.Status{{Name: "status", State: supervise.Ready, Since: noon}, {Name: "lb", State: supervise.Ready, Since: noon}},
		LB: &lb.Status{
			Ready: true, Check: "https /readyz", Verified: true,
			Listen: []lb.ListenerStatus{{Address: ":6443", Active: 120, Accepted: 48211}, {Address: ":443", Accepted: 17, Rejected: 2}},
			Backends: []lb.BackendStatus{
				{Address: "10.0.1.73:6443", State: "ready", Since: noon.Add(-89 * time.Minute), Reason: "ok", LastCheck: "ok", Active: 60, Total: 24011, Source: "static"},
				{Address: "10.0.1.35:6443", State: "ready", Since: noon.Add(-89 * time.Minute), LastCheck: "ok", Active: 60, Total: 24217, Source: "static"},
			},
		},
	}
	all["lb"] = balances

	discovers := balances
	discovered := *balances.LB
	discovered.Backends = []lb.BackendStatus{{Address: "10.0.1.36:6443", State: "ready", Since: noon.Add(-5 * time.Minute), LastCheck: "ok", Source: "discovered"}}
	discovered.Discovery = &lb.DiscoveryStatus{Server: "https://10.0.1.48:6443", Since: noon.Add(-5 * time.Minute), LastSuccess: noon.Add(-time.Second)}
	discovers.LB = &discovered
	all["lb-discovery"] = discovers

	trouble := balances
	trouble.Ready, trouble.Reason = false, "lb: draining"
	trouble.Components = []supervise.Status{{Name: "status", State: supervise.Ready, Since: noon}, {Name: "lb", State: supervise.Stopping, Since: noon.Add(-4 * time.Second)}}
	trouble.LB = &lb.Status{
		Reason: "draining", Check: "https /readyz", FailOpen: true, Held: 3,
		Listen: append(slices.Clip(balances.LB.Listen), lb.ListenerStatus{Address: "10.0.1.9:6443", Active: 3, Accepted: 88, Closed: true}),
		Backends: []lb.BackendStatus{
			{Address: "10.0.1.73:6443", State: "dead", Since: noon.Add(-12 * time.Second), Reason: "connect: connection refused", LastCheck: "connect_error", Total: 24011, Errors: 7, Source: "static"},
			{Address: "10.0.1.35:6443", Name: "api.example.com:6443", State: "not_ready", Since: noon.Add(-3 * time.Second), Reason: "/readyz says 500:\netcd", LastCheck: "not_ready", Active: 2, Total: 5, Source: "static"},
			{Address: "10.0.1.36:6443", State: "slow_start", Since: noon.Add(-5 * time.Second), LastCheck: "ok", Active: 1, Total: 1, Source: "discovered"},
			{Address: "10.0.1.37:6443", State: "draining", Since: noon, Source: "discovered"},
			{Address: "10.0.1.39:6443", State: "ready", Since: noon, LastCheck: "ok", Source: "static", Use: "last resort", Weight: new(10)},
			{Address: "other.example.com:6443", State: "unresolved", Since: noon, Reason: "lookup other.example.com: no such host", Source: "static"},
			{Address: "10.0.1.38:6443", State: "unknown", Source: "discovered"},
		},
		Discovery: &lb.DiscoveryStatus{Since: noon.Add(-3 * time.Minute), LastSuccess: noon.Add(-4 * time.Minute), Error: "https://10.0.1.48:6443: connection\nrefused"},
	}
	all["lb-trouble"] = trouble

	both := ready
	both.LB = &lb.Status{Ready: true, Check: "tcp", Listen: balances.LB.Listen[1:], Backends: balances.LB.Backends[:1]}
	all["both"] = both
	return all
}

func TestListenerName(t *testing.T) {
	for want, l := range map[string]lb.ListenerStatus{
		"a:1":                       {Address: "a:1"},
		"a:1 (closed)":              {Address: "a:1", Closed: true, Away: "x"},
		"a:1 accept-proxy":          {Address: "a:1", AcceptProxy: true},
		"a:1 accept-proxy (closed)": {Address: "a:1", AcceptProxy: true, Closed: true},
		"a:1 (address not here: no interface has IPv6)": {Address: "a:1", Away: "address not here: no interface has IPv6"},
	} {
		if got := listenerName(l); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestWriteTable(t *testing.T) {
	for name, r := range reports() {
		for suffix, colour := range map[string]bool{"": false, "-colour": true} {
			t.Run(name+suffix, func(t *testing.T) {
				var got bytes.Buffer
				if err := WriteTable(&got, r, noon, colour, 0); err != nil {
					t.Fatal(err)
				}
				harness.Golden(t, filepath.Join("testdata", name+suffix+".golden"), got.Bytes())
			})
		}
	}
}

// Scripts read the JSON, so its keys must not change.
func TestJSON(t *testing.T) {
	for _, name := range []string{"waiting", "lb", "lb-discovery"} {
		got, err := json.MarshalIndent(reports()[name], "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		harness.Golden(t, filepath.Join("testdata", name+".json"), append(got, '\n'))
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59900 * time.Millisecond: "59s", time.Minute: "1m0s", 3600 * time.Second: "1h0m", 25*time.Hour + 59*time.Minute: "1d1h",
	} {
		if got := Age(d); got != want {
			t.Errorf("Age(%v) = %s, want %s", d, got, want)
		}
	}
}

// serve answers on a unix socket, below a path too long for a socket address.
func serve(t *testing.T, h http.Handler) (socket string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/kthwd.sock", d.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return filepath.Join(dir, "kthwd.sock")
}

func answer(r Report) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(r) })
	mux.HandleFunc("GET /log-level", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "all=info\netcd=debug\n") })
	mux.HandleFunc("PUT /log-level", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "loud") {
			http.Error(w, "unknown log level \"loud\"", http.StatusBadRequest)
			return
		}
		w.Write(body)
	})
	return mux
}

func TestClient(t *testing.T) {
	ctx := context.Background()
	want := reports()["waiting"]
	c := Client{Socket: serve(t, answer(want))}
	got, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	levels, err := c.Levels(ctx)
	if diff := cmp.Diff(map[string]string{"all": "info", "etcd": "debug"}, levels); err != nil || diff != "" {
		t.Errorf("Levels: %v, -want +got:\n%s", err, diff)
	}
	levels, err = c.SetLevels(ctx, "all=warn", "etcd=2")
	if diff := cmp.Diff(map[string]string{"all": "warn", "etcd": "2"}, levels); err != nil || diff != "" {
		t.Errorf("SetLevels: %v, -want +got:\n%s", err, diff)
	}
	if _, err := c.SetLevels(ctx, "loud"); err == nil || err.Error() != `unknown log level "loud"` {
		t.Errorf("SetLevels(loud): got %v", err)
	}
	// Of another version, or in kthwd try: the list of paths would be no help.
	_, err = Client{Socket: serve(t, unknown([]string{"/"}))}.Get(ctx, "/of-another-version")
	if hint, _ := advice.Of(err); err == nil || !strings.Contains(err.Error(), "does not have this") || hint == "" || strings.Contains(err.Error(), "paths") {
		t.Errorf("an unknown path: got %v, hint %q", err, hint)
	}
}

func TestClientFallsBackToTheAddress(t *testing.T) {
	s := httptest.NewServer(answer(reports()["ready"]))
	defer s.Close()
	addr := strings.TrimPrefix(s.URL, "http://")
	missing := filepath.Join(t.TempDir(), "kthwd.sock")
	if r, err := (Client{Socket: missing, Addr: addr, Anywhere: true}).Status(context.Background()); err != nil || r.PID != 4711 {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := (Client{Addr: addr}).Status(context.Background()); err != nil || r.PID != 4711 {
		t.Errorf("a load balancer has no socket: got %+v, %v", r, err)
	}
	if r, err := (Client{Socket: missing, Addr: addr}).Status(context.Background()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("another kthwd may answer there: got %+v, %v", r, err)
	}
}

func TestClientWithoutServer(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	missing := filepath.Join(dir, "kthwd.sock")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there now
	stale, err := net.Listen("unix", filepath.Join(dir, "stale.sock"))
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	for name, c := range map[string]Client{
		"nothing":        {Socket: missing},
		"no directory":   {Socket: filepath.Join(dir, "x", "y")},
		"refused":        {Socket: missing, Addr: l.Addr().String(), Anywhere: true},
		"no socket":      {Addr: l.Addr().String()},
		"a stale socket": {Socket: filepath.Join(dir, "stale.sock")},
	} {
		if _, err := c.Status(ctx); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: got %v, want ErrNotRunning", name, err)
		}
	}

	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }))
	defer other.Close()
	_, err = Client{Socket: missing, Addr: strings.TrimPrefix(other.URL, "http://"), Anywhere: true}.Status(ctx)
	if err == nil || errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "is not kthwd") {
		t.Errorf("another program: got %v", err)
	}

	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	silent := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	if _, err := (Client{Socket: silent}).Status(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent one: got %v", err)
	}
}
