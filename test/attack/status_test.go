package attack

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"kthwd/test/kthwtest"
)

// L2: kthwd is down, and another user of the machine listens on its metrics address and
// answers "ready". Before, root's kthwd status, and so the package's scripts, believed it.
func TestStrangerIsNotBelieved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have processes of two users")
	}
	report := `{"pid":1,"version":"v9.9.9","health":"ready","components":[{"name":"etcd","state":"ready","healthy":true}]}`
	address := impostor(t, report)
	file := filepath.Join(t.TempDir(), "controller.yaml")
	if err := os.WriteFile(file, []byte("role: [controller]\nmetrics-address: "+address+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"controller":    {"status", "--config=" + file},
		"cluster":       {"status", "--config=" + file, "--cluster"},
		"script":        {"status", "--config=" + file, "-o", "json"},
		"load balancer": {"status", "--metrics-address=" + address, "--status-socket=" + filepath.Join(t.TempDir(), "none.sock")},
	} {
		t.Run(name, func(t *testing.T) {
			code, out := kthwd(t, args...)
			if code != 2 || strings.Contains(out, "v9.9.9") {
				t.Errorf("exit code %d, want 2 and nothing of the report:\n%s", code, out)
			}
			if want := "a process of the user nobody listens on " + address + " and is not believed"; !strings.Contains(out, want) {
				t.Errorf("%q is not in the output:\n%s", want, out)
			}
		})
	}
	if code, out := kthwd(t, "status", "--server="+address); code != 0 || !strings.Contains(out, "v9.9.9") {
		t.Errorf("a server that the user names is asked: exit code %d\n%s", code, out)
	}
}

// L1: a page of a foreign site whose name resolves to 127.0.0.1 reads nothing from a browser on
// the machine. The metrics address is the same server in each role.
func TestForeignPageReadsNothing(t *testing.T) {
	port, err := kthwtest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "lb.yaml")
	text := fmt.Sprintf("role: lb\nstatus-socket: ''\ncheck: tcp\nlisten: ['127.0.0.1:%d']\nbackend: ['127.0.0.1:1']\n", port)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := kthwtest.Start(t, kthwtest.Options{NoWait: true, File: file})
	kthwtest.WaitFor(t, "the load balancer's status", kthwtest.Soon, func() error { _, err := c.Status(); return err })
	at := net.JoinHostPort(c.Address, fmt.Sprint(c.Ports.Metrics))
	for host, want := range map[string]int{at: http.StatusOK, "rebind.attacker.test:10300": http.StatusMisdirectedRequest} {
		for _, path := range []string{"/", "/status.json", "/metrics"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != want {
				t.Errorf("%s asked for as %s: got %s and %d bytes, %v; want %d", path, host, resp.Status, len(body), err, want)
			}
		}
	}
}

// L2: what a foreign server says reaches the terminal without the characters that drive one.
func TestForeignReportDrivesNoTerminal(t *testing.T) {
	const evil = "\x1b]0;pwned\a\x1b[2J\r\u202e"
	at := time.Now().UTC().Format(time.RFC3339)
	report, err := json.Marshal(map[string]any{
		"pid": 1, "version": "v1" + evil, "kubernetes": "v2" + evil, "etcd": "v3" + evil, "health": "ready" + evil, "reason": evil, "started": at, "name": "c0" + evil,
		"components": []map[string]any{{"name": "etcd" + evil, "state": "ready" + evil, "reason": evil, "lastError": evil, "since": at}},
		"findings":   []map[string]any{{"health": "degraded", "kind": "x" + evil, "text": "text" + evil, "do": "do" + evil}},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(report) }))
	defer server.Close()
	for _, args := range [][]string{nil, {"-o", "json"}} {
		_, out := kthwd(t, append([]string{"status", "--server=" + server.Listener.Addr().String()}, args...)...)
		if !strings.Contains(out, "v1") {
			t.Errorf("%q: the report is not shown:\n%q", args, out)
		}
		for _, c := range []string{"\x1b", "\a", "\r", "\u202e"} {
			if strings.Contains(out, c) {
				t.Errorf("%q: %q reaches the terminal:\n%q", args, c, out)
			}
		}
	}
}

// impostor answers every request with a report, on a socket of another user.
func impostor(t *testing.T, report string) (address string) {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, report) }))
	server.Listener.Close()
	server.Listener = listenAs(t, stranger)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// listenAs opens a port on loopback as another user: a socket belongs to the user of the
// thread that opens it.
func listenAs(t *testing.T, uid int) net.Listener {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setfsuid(uid); err != nil {
		t.Fatal(err)
	}
	defer unix.Setfsuid(os.Geteuid())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
