package discovery

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzCache: a cache file of any content gives addresses or an error, never half of one.
func FuzzCache(f *testing.F) {
	for _, s := range []string{"", `{"backends":["10.0.0.1:6443"]}`, `{"backends":["10.0.0.1:6443"],"former":["x"]}`, `{"backends":[]}`, `{"backends":["[::1]:0"]}`, `[]`, "null", `{"backends":null,"former":["10.0.0.1:1"]}`} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "cache")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := &cache{path: path}
		content, err := c.read()
		if err != nil {
			if len(content.Backends)+len(content.Former) > 0 {
				t.Errorf("%q together with %v", content, err)
			}
			return
		}
		if len(content.Backends) == 0 {
			t.Error("no backend, and no error")
		}
		for _, b := range append(content.Backends, content.Former...) {
			if a, err := netip.ParseAddrPort(b); err != nil || a.Port() == 0 {
				t.Errorf("%q is taken for an address", b)
			}
		}
	})
}

// FuzzKubeconfig: any file is read or refused with one line. The parser's repeats no secret; a
// later one may name the server, the context and the files.
func FuzzKubeconfig(f *testing.F) {
	const whole = `apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "https://10.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: a, user: {token: s3cretsecret}}]
`
	for _, s := range []string{"", whole, strings.Replace(whole, "https", "http", 1), strings.Replace(whole, "token:", "client-key-data:", 1), "users: s3cretsecret", strings.Replace(whole, "token: ", "token: *", 1), "&a [*a]", "{}"} {
		f.Add([]byte(s))
	}
	path := filepath.Join(f.TempDir(), "kubeconfig")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readKubeconfig(path)
		if err == nil {
			return
		}
		if said := err.Error(); strings.Contains(said, "\n") || strings.Contains(said, "not a kubeconfig") && strings.Contains(said, "s3cretsecret") {
			t.Errorf("%q", said)
		}
	})
}
