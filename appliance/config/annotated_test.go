package config

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestAnnotated checks that kthwd accepts the file that a package installs, as it is
// and with every key enabled, and that its values equal the defaults.
func TestAnnotated(t *testing.T) {
	for _, role := range []string{RoleController, RoleLB} {
		var b bytes.Buffer
		if err := Annotated(&b, role, map[string]string{"log-format": "json"}); err != nil {
			t.Fatal(err)
		}
		keys := regexp.MustCompile(`(?m)^#([a-z])`)
		for name, text := range map[string][]byte{"as it is": b.Bytes(), "all switched on": keys.ReplaceAll(b.Bytes(), []byte("$1"))} {
			file := filepath.Join(t.TempDir(), "file.yaml")
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			got := NewLoader()
			if err := got.fs.Parse([]string{"--role=" + role, "--config=" + file}); err != nil {
				t.Fatal(err)
			}
			if err := got.Load(); err != nil {
				t.Errorf("%s, %s: %v", role, name, err)
			}
			want := NewLoader()
			if err := want.fs.Parse([]string{"--role=" + role, "--log-format=json"}); err != nil {
				t.Fatal(err)
			}
			for i, s := range got.table {
				if s.name != "config" && s.yaml() != want.table[i].yaml() {
					t.Errorf("%s, %s: %s: got %s, want %s", role, name, s.name, s.yaml(), want.table[i].yaml())
				}
			}
			if name == "all switched on" {
				for _, key := range got.Names(role) {
					if key != "role" && key != "config" && got.Origin(key) == OriginDefault {
						t.Errorf("%s: %s is not in the file", role, key)
					}
				}
			}
		}
		if err := Annotated(&b, role, map[string]string{"no-such": "1"}); err == nil {
			t.Errorf("%s: a key that is not there was taken", role)
		}
	}
}
