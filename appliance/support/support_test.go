package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestClean holds that each secret of a directory is found in each of its forms, and that
// what looks like a secret goes, too.
func TestClean(t *testing.T) {
	dir := t.TempDir()
	key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: bytes.Repeat([]byte("0123456789abcdef+"), 9)}))
	other := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bytes.Repeat([]byte("fedcba9876543210-"), 9)}))
	const password, token = `pa"ss\wörd&1`, "abcdef0123456789"
	write(t, dir, "x-key.pem", key)
	write(t, dir, "admin.kubeconfig", "users:\n- user:\n    client-key-data: "+base64.StdEncoding.EncodeToString([]byte(other))+"\n")
	write(t, dir, "encryption-config.yaml", "keys:\n- name: key1\n  secret: "+base64.StdEncoding.EncodeToString([]byte("32 bytes of key, of which no one!"))+"\n")
	csv := write(t, t.TempDir(), "tokens.csv", token+",user,1\n")
	plain := write(t, t.TempDir(), "web.yaml", "password: 'hunter2hunter2'\n")
	write(t, dir, "etcd/member/snap/db", "password: not-looked-at\n")
	r := NewRedactor(dir, csv, plain)
	r.add([]byte(password))
	secrets := []string{password, token, "hunter2hunter2", "32 bytes of key, of which no one!"}
	for _, block := range []string{key, other} {
		b, _ := pem.Decode([]byte(block))
		secrets = append(secrets, string(b.Bytes))
		for line := range strings.Lines(block) {
			if !strings.HasPrefix(line, "-----") {
				secrets = append(secrets, strings.TrimSpace(line))
			}
		}
	}
	for _, secret := range secrets {
		quoted, _ := json.Marshal(secret)
		forms := []string{secret, strings.Trim(string(quoted), `"`), base64.StdEncoding.EncodeToString([]byte(secret)), hex.EncodeToString([]byte(secret))}
		for _, form := range forms {
			if len(form) < shortest {
				continue
			}
			if got := string(r.Clean([]byte("before " + form + " after"))); strings.Contains(got, form) {
				t.Errorf("still there: %q", form)
			}
		}
	}
	for in, want := range map[string]string{
		"--etcd-servers=https://user:p@ss@10.0.0.1:2379":                "--etcd-servers=https://REDACTED@10.0.0.1:2379",
		"Authorization: Bearer abcdefghijk.lmn":                         "Authorization: Bearer REDACTED",
		`{"token":"abc"}`:                                               `{"token":"REDACTED"}`,
		`"{\"password\": \"abc\"}"`:                                     `"{\"password\": \"REDACTED\"}"`,
		"--x-password=abc --y=z":                                        "--x-password=REDACTED --y=z",
		"kthwd join kthwd1.c2VjcmV0c2VjcmV0":                            "kthwd join REDACTED",
		"eyJhbGciOiJSUzI1NiIs.eyJpc3MiOiJr.c2lnbmF0dXJl x":              "REDACTED x",
		"a -----BEGIN PRIVATE KEY-----\nxyz\n-----END PRIVATE KEY-----": "a REDACTED",
		"--token-auth-file=/etc/t.csv":                                  "--token-auth-file=/etc/t.csv",
		"apiserver_storage_objects{resource=\"secrets\"} 7":             "apiserver_storage_objects{resource=\"secrets\"} 7",
		"https://10.0.0.1:2379/x@y":                                     "https://10.0.0.1:2379/x@y",
	} {
		if got := string(r.Clean([]byte(in))); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestWrite holds the mode of the archive, its cleaned content, and that it replaces nothing.
func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar.gz")
	all := []Entry{{Name: "log.txt", Text: []byte("token=abcdefgh\n")}, {Name: "metrics.txt", Err: errors.New("no answer")}}
	if err := Write(path, all, &Redactor{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v and %v, want mode 0600", info, err)
	}
	if err := Write(path, nil, &Redactor{}, time.Now()); !errors.Is(err, os.ErrExist) {
		t.Errorf("got %v, want a refusal to replace it", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	zip, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(archive)
		got[h.Name] = string(text)
	}
	if got["kthwd-support/log.txt"] != "token=REDACTED\n" || !strings.Contains(got["kthwd-support/metrics.txt"], "missing: no answer") {
		t.Errorf("got %q", got)
	}
}

// TestMachine holds that the descriptions say something of this machine.
func TestMachine(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a-key.pem", "x")
	for what, text := range map[string][]byte{"MemTotal": Machine(0), "inodes free": Disks(dir), "-rw-------": Files(dir)} {
		if !bytes.Contains(text, []byte(what)) {
			t.Errorf("no %q in:\n%s", what, text)
		}
	}
	if text := Files(dir); !bytes.Contains(text, []byte("a-key.pem")) {
		t.Errorf("got %s", text)
	}
	if got := mountOf("1 0 8:1 / / rw - ext4 /dev/a rw\n2 0 8:2 / /srv rw - xfs /dev/b rw\n", "/srvx"); !strings.Contains(got, "/dev/a") {
		t.Errorf("got %q, want the root", got)
	}
}

func TestCleanFlag(t *testing.T) {
	for _, tt := range []struct{ key, value, want string }{
		{"audit-log-path", "/var/log/audit.log", "/var/log/audit.log"},
		{"service-account-extend-token-expiration", "true", "true"},
		{"initial-cluster-token", "s3cret", "REDACTED"},
		{"discovery", "https://me:s3cret@etcd.example.com/x", "https://REDACTED@etcd.example.com/x"},
		{"feature-gates", "", ""},
	} {
		if got := CleanFlag(tt.key, tt.value); got != tt.want {
			t.Errorf("--%s=%s is shown as %q, want %q", tt.key, tt.value, got, tt.want)
		}
	}
}
