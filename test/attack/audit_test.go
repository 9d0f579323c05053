package attack

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kthwd/test/kthwtest"
)

// A client without credentials can fill its own file of the audit log, but push nothing out
// of the log of the others; and no request escapes the log by its length.
func TestAnonymousPushesNoEvidenceOut(t *testing.T) {
	t.Parallel()
	// Small files, so that few requests rotate them.
	c := start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=audit-log-maxsize=1", "--kube-apiserver-arg=audit-log-maxbackup=1"}})
	admin := c.pair(t, "admin")
	create(t, c, admin, "evidence", "")
	log, foreign := filepath.Join(c.Dir, "audit.log"), filepath.Join(c.Dir, "audit-unauthenticated.log")
	recorded(t, log, `"name":"evidence"`)

	const rotations = 6
	path := "/api/v1/namespaces/default/configmaps/" + strings.Repeat("a", 7000)
	written, last := int64(0), int64(0)
	for sent := 0; written < rotations<<20; sent++ {
		if sent == 50_000 {
			t.Fatalf("%d bytes in %s after %d requests", written, foreign, sent)
		}
		if code, body, err := c.ask(t.Context(), tls.Certificate{}, http.MethodGet, c.Ports.Secure, path, nil); err != nil || code != http.StatusForbidden && code != http.StatusUnauthorized {
			t.Fatalf("an anonymous request: %d %.100q, %v", code, body, err)
		}
		if sent%20 == 0 && !kept(t, c.Dir, `"name":"evidence"`) {
			t.Fatalf("%d anonymous requests have pushed an administrator's record out of every audit log", sent+1)
		}
		if info, err := os.Stat(foreign); reviewed {
			continue // it has one file for all
		} else if err != nil {
			t.Fatal(err)
		} else if now := info.Size(); now < last {
			written, last = written+now, now
		} else {
			written, last = written+now-last, now
		}
	}
	if files := matching(t, c.Dir, "audit-unauthenticated*"); len(files) > 3 { // the one that is written, an old one, and one about to be removed
		t.Errorf("the files of unauthenticated clients are not bounded: %q", files)
	}
	if files := matching(t, c.Dir, "audit-2*"); len(files) > 0 {
		t.Errorf("the audit log was rotated: %q", files)
	}
	recorded(t, log, `"name":"evidence"`)
	// Not one of their records is in it, so neither more of them nor more time push it out.
	if data, err := os.ReadFile(log); err != nil || strings.Contains(string(data), strings.Repeat("a", 7000)) {
		t.Errorf("the audit log has a request of an unauthenticated client: %v", err)
	}

	t.Run("a long request is recorded", func(t *testing.T) {
		create(t, c, admin, "long", "?fieldManager=x&pad="+strings.Repeat("b", 15<<10))
		recorded(t, log, `"name":"long"`)
	})
	t.Run("a longer one does nothing", func(t *testing.T) {
		for name, tell := range map[string]struct {
			path string
			want int
		}{
			"URL":    {"/api/v1/namespaces/default/configmaps/evidence?pad=" + strings.Repeat("c", 17<<10), http.StatusRequestURITooLong},
			"a path": {"/api/v1/namespaces/default/configmaps/evidence" + strings.Repeat("/", 17<<10), http.StatusRequestURITooLong},
		} {
			if code, body, err := c.ask(t.Context(), admin, http.MethodDelete, c.Ports.Secure, tell.path, nil); err != nil || code != tell.want {
				t.Errorf("%s: got %d %.100q, %v; want %d", name, code, body, err, tell.want)
			}
		}
		if _, err := c.Client(t).CoreV1().ConfigMaps("default").Get(t.Context(), "evidence", metav1.GetOptions{}); err != nil {
			t.Errorf("the object of the refused requests: %v", err)
		}
	})
}

// kept reports whether the audit log, or a file that its rotation left, has the text.
func kept(t *testing.T, dir, text string) bool {
	t.Helper()
	return slices.ContainsFunc(append(matching(t, dir, "audit-2*"), filepath.Join(dir, "audit.log")), func(file string) bool {
		data, err := os.ReadFile(file)
		return err == nil && strings.Contains(string(data), text)
	})
}

func create(t *testing.T, c *cluster, as tls.Certificate, name, query string) {
	t.Helper()
	object := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q}}`, name)
	code, body, err := c.ask(t.Context(), as, http.MethodPost, c.Ports.Secure, "/api/v1/namespaces/default/configmaps"+query, []byte(object))
	if err != nil || code != http.StatusCreated {
		t.Fatalf("create %s: %d %.200q, %v", name, code, body, err)
	}
}

// recorded waits until the file has the text.
func recorded(t *testing.T, file, text string) {
	t.Helper()
	kthwtest.WaitFor(t, text+" in "+file, kthwtest.Soon, func() error {
		data, err := os.ReadFile(file)
		if err == nil && !strings.Contains(string(data), text) {
			err = fmt.Errorf("not in its %d bytes", len(data))
		}
		return err
	})
}

func matching(t *testing.T, dir, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Without credentials only the probes answer. An administrator who wants more says so.
func TestAnonymousSeesProbesOnly(t *testing.T) {
	t.Parallel()
	paths := map[string]int{
		"/livez": http.StatusOK, "/readyz": http.StatusOK, "/readyz?verbose": http.StatusOK, "/healthz": http.StatusOK,
		"/version": http.StatusUnauthorized, "/api": http.StatusUnauthorized, "/apis": http.StatusUnauthorized, "/metrics": http.StatusUnauthorized,
		"/livez/ping": http.StatusUnauthorized, "/api/v1/namespaces/default/configmaps/livez": http.StatusUnauthorized, "//livez": http.StatusUnauthorized,
	}
	c := use(t)
	for path, want := range paths {
		if code, body, err := c.ask(t.Context(), tls.Certificate{}, http.MethodGet, c.Ports.Secure, path, nil); err != nil || code != want {
			t.Errorf("%s: got %d %.100q, %v; want %d", path, code, body, err, want)
		}
	}
	for name, arg := range map[string]string{"flag": "anonymous-auth=true", "identity provider": "oidc-issuer-url=https://127.0.0.1:1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := []string{"--kube-apiserver-arg=" + arg}
			if name == "identity provider" {
				args = append(args, "--kube-apiserver-arg=oidc-client-id=x")
			}
			c := start(t, kthwtest.Options{Args: args})
			if code, body, err := c.ask(t.Context(), tls.Certificate{}, http.MethodGet, c.Ports.Secure, "/version", nil); err != nil || code != http.StatusOK {
				t.Errorf("/version: got %d %.100q, %v; want the user's flag to hold", code, body, err)
			}
		})
	}
}
