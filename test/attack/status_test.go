package attack

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
