package fault

import (
	"archive/tar"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// unpack reads an archive of kthwd support.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zip, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(h.Name, "kthwd-support/")] = string(text)
	}
}

var (
	secretFields = regexp.MustCompile(`(?m)(?:client-key-data|secret|token): *(\S+)`)
	keyBlocks    = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)-----END`)
)

// secretsIn finds the secrets of a data directory, independently of kthwd.
func secretsIn(t *testing.T, dir string) (all []string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	keys := func(text string) {
		for _, m := range keyBlocks.FindAllStringSubmatch(text, -1) {
			all = append(all, strings.Fields(m[1])...)
			body, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(m[1]), ""))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, string(body), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: body})))
		}
	}
	for _, n := range names {
		text, err := os.ReadFile(filepath.Join(dir, n.Name()))
		if err != nil || strings.HasSuffix(n.Name(), ".log") {
			continue
		}
		keys(string(text))
		for _, m := range secretFields.FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
			if plain, err := base64.StdEncoding.DecodeString(m[1]); err == nil {
				all = append(all, string(plain))
				keys(string(plain))
			}
		}
	}
	return all
}

// noSecret searches a text for each form of each secret. A short rest of a key is no secret.
func noSecret(t *testing.T, what, text string, secrets []string) {
	t.Helper()
	for _, secret := range secrets {
		if len(secret) < 8 {
			continue
		}
		quoted, _ := json.Marshal(secret)
		for form, is := range map[string]string{
			"as it is": secret, "in JSON": strings.Trim(string(quoted), `"`), "in hex": hex.EncodeToString([]byte(secret)),
			"in base64": base64.StdEncoding.EncodeToString([]byte(secret)), "in a URL's base64": base64.RawURLEncoding.EncodeToString([]byte(secret)),
		} {
			if strings.Contains(text, is) {
				t.Errorf("%s has a secret %s", what, form)
			}
		}
	}
}

// The archive for a report has all its parts, and no secret in any form.
func TestSupport(t *testing.T) {
	kthwtest.Turn(t, 1)
	const password = "hunter2-of-a-proxy"
	c := kthwtest.Start(t, kthwtest.Options{})
	secrets := secretsIn(t, c.Dir)
	if len(secrets) < 30 {
		t.Fatalf("got %d secrets in %s, want many", len(secrets), c.Dir)
	}
	stop(t, c, syscall.SIGTERM, 0)
	// The user's flags have a password and the key of the encryption, so they must be looked for.
	encryption := secrets[slices.IndexFunc(secrets, func(s string) bool { return len(s) == 44 && strings.HasSuffix(s, "=") })]
	c = again(t, c, kthwtest.Options{Args: []string{
		"--kube-apiserver-arg=service-account-jwks-uri=https://user:" + password + "@127.0.0.1:1/openid/v1/jwks",
		"--kube-controller-manager-arg=cluster-name=" + encryption,
		"--log-level=debug",
	}})
	secrets = append(secrets, password)

	dir := t.TempDir()
	collect := func(name string) map[string]string {
		cmd := exec.Command(kthwtest.Binary(t), "support", "--config=", "--data-dir="+c.Dir, "-o", filepath.Join(dir, name))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		all := unpack(t, filepath.Join(dir, name))
		for entry, text := range all {
			noSecret(t, name+": "+entry, text, secrets)
		}
		return all
	}
	online := collect("online.tar.gz")
	for name, want := range map[string]string{
		"version.txt": "kubernetes ", "status.txt": "MEMBER", "status.json": `"ready": true`, "config.yaml": "# flag", "machine.txt": "MemTotal",
		"command-lines.txt": "--service-account-jwks-uri=https://REDACTED@127.0.0.1:1", "log.txt": "component=etcd", "goroutines.txt": "goroutine profile: total",
		"metrics.txt": "kthwd_ready 1", "metrics-kube-apiserver.txt": "apiserver_request_total", "metrics-etcd.txt": "etcd_server_has_leader",
		"disks.txt": "inodes free", "files.txt": "ca-key.pem", "certificates.txt": "kubernetes.pem", "last-run/run.json": `"boot"`, "last-run/end.txt": "running since",
	} {
		if got := online[name]; !strings.Contains(got, want) {
			t.Errorf("%s: got %d bytes without %q:\n%.500s", name, len(got), want, got)
		}
	}
	stop(t, c, syscall.SIGTERM, 0)
	offline := collect("offline.tar.gz")
	if offline["log.txt"] != "" || !strings.Contains(offline["status.txt"], "did not answer") || !strings.Contains(offline["last-run/end.txt"], "stopped in order") {
		t.Errorf("without a process: got %v", offline["status.txt"]+offline["last-run/end.txt"])
	}
}
