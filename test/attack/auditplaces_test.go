package attack

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"kthwd/test/kthwtest"
)

// The audit log lies on another file system, and its full disk stops neither etcd nor the API
// server: the status says that records are lost, and they are written again when there is room.
func TestAuditLogOnAnotherFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a file system in a mount namespace of its own")
	}
	t.Parallel()
	place := t.TempDir()
	c := start(t, kthwtest.Options{
		Wrap: []string{"unshare", "--mount", "sh", "-ec", `mount -t tmpfs -o size=8m tmpfs "$0"; exec "$@"`, place},
		Args: []string{"--kube-apiserver-arg=audit-log-path=" + filepath.Join(place, "audit.log")},
	})
	seen := filepath.Join(fmt.Sprintf("/proc/%d/root", c.Cmd.Process.Pid), place) // as the process sees it
	admin := c.pair(t, "admin")
	create(t, c, admin, "evidence", "")
	recorded(t, filepath.Join(seen, "audit.log"), `"name":"evidence"`)
	if _, _, err := c.ask(t.Context(), tls.Certificate{}, http.MethodGet, c.Ports.Secure, "/api/v1/"+mark, nil); err != nil {
		t.Fatal(err)
	}
	recorded(t, filepath.Join(seen, "audit-unauthenticated.log"), mark)
	if device(t, seen) == device(t, c.Dir) {
		t.Error("the log is on etcd's file system: this test shows nothing")
	}
	if found := append(matching(t, c.Dir, "audit*.log"), matching(t, place, "*")...); len(found) > 0 {
		t.Errorf("the log is here as well: %q", found)
	}

	filler := filepath.Join(seen, "filler")
	fill(t, filler)
	kthwtest.WaitFor(t, "the finding about lost records", 3*time.Minute, func() error {
		create(t, c, admin, fmt.Sprintf("full-%d", time.Now().UnixNano()), "") // with a full log, too
		r, err := c.Status()
		if err != nil {
			return err
		}
		for _, f := range r.Findings {
			if f.Kind == "audit_records_lost" {
				return nil
			}
		}
		return fmt.Errorf("findings %+v", r.Findings)
	})
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	create(t, c, admin, "with-room", "")
	recorded(t, filepath.Join(seen, "audit.log"), `"name":"with-room"`)
}

func device(t *testing.T, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev
}

// fill writes a file until the file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{64 << 10, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
}

// receiver collects the audit records that it is sent, by their ID and stage.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	all  map[string]int
	text strings.Builder
}

func startReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{all: map[string]int{}}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var list auditv1.EventList
		if err := json.NewDecoder(req.Body).Decode(&list); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range list.Items {
			r.all[string(e.AuditID)+" "+string(e.Stage)]++
			fmt.Fprintf(&r.text, "%s %s %s\n", e.User.Username, e.Verb, e.RequestURI)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// kubeconfig is the file that names the receiver to the API server.
func (r *receiver) kubeconfig(t *testing.T) string {
	t.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw})
	path := filepath.Join(t.TempDir(), "webhook.kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n",
		r.URL, base64.StdEncoding.EncodeToString(ca))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (r *receiver) has(what string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !strings.Contains(r.text.String(), what) {
		return fmt.Errorf("not among %d records", len(r.all))
	}
	return nil
}

// A webhook has every record, those of clients without credentials too, once each, beside the
// two files.
func TestAuditWebhook(t *testing.T) {
	t.Parallel()
	r := startReceiver(t)
	c := start(t, kthwtest.Options{Args: []string{
		"--kube-apiserver-arg=audit-webhook-config-file=" + r.kubeconfig(t), "--kube-apiserver-arg=audit-webhook-batch-max-wait=1s"}})
	admin := c.pair(t, "admin")
	create(t, c, admin, "evidence", "?fieldManager=evidence")
	if _, _, err := c.ask(t.Context(), tls.Certificate{}, http.MethodGet, c.Ports.Secure, "/api/v1/"+mark, nil); err != nil {
		t.Fatal(err)
	}
	for what, record := range map[string]string{"a user's record": "admin create /api/v1/namespaces/default/configmaps?fieldManager=evidence", "a record of nobody": "/api/v1/" + mark} {
		kthwtest.WaitFor(t, what+" at the receiver", 3*time.Minute, func() error { return r.has(record) })
	}
	recorded(t, filepath.Join(c.Dir, "audit.log"), `"name":"evidence"`)
	recorded(t, filepath.Join(c.Dir, "audit-unauthenticated.log"), mark)
	r.mu.Lock()
	defer r.mu.Unlock()
	again := 0 // a batch is sent again after a timeout
	for _, n := range r.all {
		if n > 1 {
			again++
		}
	}
	if 2*again > len(r.all) {
		t.Errorf("%d of %d records were sent more than once", again, len(r.all))
	}
}
