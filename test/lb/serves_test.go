package lb

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"kthwd/test/kthwtest"
)

// saying is what a metrics address says to the check of keepalived, and what comes of it.
type saying struct {
	name        string
	check       string
	hangUps     int64 // connections that are closed without an answer, at first
	refuses     bool  // nobody listens
	hangs       bool  // an answer never comes
	status      int
	exit        int
	requests    int64
	connections int64
}

const never = 1 << 20

// The check of the packages' keepalived.conf believes what kthwd says at once, and what it does
// not say after the third time. It asks four times on one connection.
func TestLBServes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	for _, tt := range []saying{
		{name: "ready", check: "running", status: 200, requests: 4, connections: 1},
		{name: "serves", check: "backends", status: 200, requests: 4, connections: 1},
		{name: "stopping", check: "running", status: 503, exit: 1, requests: 1, connections: 1},
		{name: "no backend", check: "backends", status: 503, exit: 1, requests: 1, connections: 1},
		{name: "no such path", check: "running", status: 404, exit: 1, requests: 1, connections: 1},
		{name: "an older kthwd has no such path", check: "backends", status: 404, exit: 0, requests: 1, connections: 1},
		{name: "two moments without an answer", check: "running", hangUps: 2, status: 200, requests: 2, connections: 3},
		{name: "three moments without an answer", check: "running", hangUps: 3, status: 200, exit: 1, connections: 3},
		{name: "ended", check: "running", refuses: true, exit: 1},
		{name: "ended, which the other check says", check: "backends", refuses: true},
		{name: "hangs", check: "running", hangs: true, status: 200, exit: 1, requests: 3, connections: 3},
		{name: "hangs, which the other check says", check: "backends", hangUps: never, connections: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for try := range 3 { // half a second without an answer is none, also of a machine that is busy
				err := lbServes(t, bash, tt)
				if err == nil {
					return
				}
				if try == 2 {
					t.Error(err)
				}
			}
		})
	}
}

// lbServes runs the check once, and returns how it differs.
func lbServes(t *testing.T, bash string, want saying) error {
	t.Helper()
	var requests, connections atomic.Int64
	end := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if query := map[string]string{"running": "", "backends": "backends"}[want.check]; r.URL.Path != "/readyz" || r.URL.RawQuery != query {
			t.Errorf("it asks for %s", r.URL)
		}
		if want.hangs {
			<-end
		}
		w.WriteHeader(want.status)
		_, _ = w.Write([]byte("ok\n"))
	}))
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew && connections.Add(1) <= want.hangUps {
			c.Close()
		}
	}
	s.Start()
	if want.refuses {
		s.Close()
	} else {
		defer s.Close()
	}
	defer close(end)
	cmd := exec.CommandContext(t.Context(), bash, filepath.Join(kthwtest.Root(), "packaging", "keepalived", "lb-serves"), want.check, s.Listener.Addr().String())
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != want.exit || len(out) > 0 || requests.Load() != want.requests || connections.Load() != want.connections {
		return fmt.Errorf("exit code %d after %d requests on %d connections, want %d, %d and %d: %s", got, requests.Load(), connections.Load(), want.exit, want.requests, want.connections, out)
	}
	return nil
}
