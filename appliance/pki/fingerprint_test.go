package pki

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFingerprints(t *testing.T) {
	l := filled(t)
	prints := func(salt string) map[string][]string {
		t.Helper()
		all, err := Fingerprints(l, []byte(salt))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	before := prints("a")
	for _, path := range []string{l.CA(), l.Cert(NameServiceAccount), l.Cert(NameFrontProxyCA), l.EncryptionConfig()} {
		if len(before[path]) != 1 {
			t.Errorf("%s: got %d fingerprints, want 1", filepath.Base(path), len(before[path]))
		}
		if other := prints("b")[path]; slices.Equal(other, before[path]) {
			t.Errorf("%s: the salt makes no difference", filepath.Base(path))
		}
	}

	// A comment does not change the key. A second key is added to the first.
	config := get(t, l.EncryptionConfig())
	put(t, l.EncryptionConfig(), "# mine\n"+config)
	if got := prints("a")[l.EncryptionConfig()]; !slices.Equal(got, before[l.EncryptionConfig()]) {
		t.Errorf("with a comment: got %q, want %q", got, before[l.EncryptionConfig()])
	}
	put(t, l.EncryptionConfig(), strings.Replace(config, "            - name: key1\n", "            - name: key2\n              secret: "+strings.Repeat("A", 43)+"=\n            - name: key1\n", 1))
	if got := prints("a")[l.EncryptionConfig()]; len(got) != 2 || !slices.Contains(got, before[l.EncryptionConfig()][0]) {
		t.Errorf("with a second key: got %q, want two with %q", got, before[l.EncryptionConfig()])
	}
	for path, all := range prints("a") {
		for _, p := range all {
			if len(p) != 64 || bytes.Contains([]byte(config), []byte(p)) {
				t.Errorf("%s: %q is no SHA-256", filepath.Base(path), p)
			}
		}
	}
}
