package status

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
)

// FuzzReport: a report from any server can be judged and printed, and no character of it
// reaches the terminal that could move the cursor or hide a line.
func FuzzReport(f *testing.F) {
	for _, r := range reports() {
		data, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"{}", "null", "[]", `{"version":"\u001b]0;pwned\u0007","components":[{"name":"a\nb","state":"\u009b31m"}]}`,
		`{"quorum":{"members":-1,"leader":"\r"},"lb":{"backends":[{"address":"\u202e"}]}}`, `{"findings":[{"text":"\u001b[2J","do":"\u0000"}],"events":[{"text":"\u001b"}]}`} {
		f.Add([]byte(s))
	}
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Report
		if json.Unmarshal(data, &r) != nil {
			return
		}
		r.Health, r.Findings = Assess(r, now)
		var out bytes.Buffer
		if err := WriteTable(&out, r, now, false, 100); err != nil {
			t.Fatal(err)
		}
		if err := WriteWide(&out, r, now, false, 100); err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexFunc(out.String(), func(c rune) bool { return c != '\n' && !unicode.IsPrint(c) && c != ' ' }); i >= 0 {
			t.Fatalf("%q of the report reaches the terminal", out.String()[i:min(i+20, out.Len())])
		}
	})
}

// unknownKey is what an error names of a file on purpose: see TestBadWebConfiguration.
var unknownKey = regexp.MustCompile(`field .*? not found in type`)

// FuzzWeb: any web configuration file is read or refused with one line that names the file
// and tells nothing of a key or a password in it.
func FuzzWeb(f *testing.F) {
	for _, s := range []string{"", "tls_server_config:\n  cert_file: a\n  key_file: b\n", "basic_auth_users:\n  a: $2y$10$s3cretsecret\n", "tls_server_config: [s3cretsecret]\n",
		"basic_auth_users: s3cretsecret\n", "http_server_config: {http2: s3cretsecret}\n", "&a [*a]\n", "\x00", "basic_auth_users:\n  a: *s3cretsecret\n", "basic_auth_users:\n  a: *0's3cretsecret\n", "&s3cretsecret [*s3cretsecret]\n"} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "web.yml")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadWeb(path)
		if err == nil {
			return
		}
		var file *fs.PathError // names a file, which is no secret
		if text := err.Error(); strings.Contains(text, "\n") || !errors.As(err, &file) && strings.Contains(unknownKey.ReplaceAllString(text, ""), "s3cretsecret") {
			t.Fatalf("%q", text)
		}
	})
}
