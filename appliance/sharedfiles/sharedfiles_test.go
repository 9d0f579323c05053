package sharedfiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kthwd/appliance/pki"
)

// A controller matches the cluster if each of its shared files has a known fingerprint,
// so keys can be rotated on one controller after another.
func TestSharedFiles(t *testing.T) {
	made := func() pki.Layout {
		t.Helper()
		l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
		if _, err := pki.Ensure(l, pki.Spec{Server: "https://127.0.0.1:6443"}); err != nil {
			t.Fatal(err)
		}
		return l
	}
	all := func(string) bool { return true }
	ours, other := made(), made()

	known, misfits, err := fingerprints{}.with(ours, all)
	if err != nil || len(misfits) > 0 || known == nil || len(known.Files) != 5 {
		t.Fatalf("the first controller: got %+v, %v, %v; want five files", known, misfits, err)
	}
	if next, misfits, err := known.with(ours, all); next != nil || len(misfits) > 0 || err != nil {
		t.Errorf("the same files: got %+v, %v, %v; want nothing new", next, misfits, err)
	}
	_, misfits, err = known.with(other, all)
	text := errors.Join(misfits...).Error()
	if err != nil || len(misfits) != 5 || !strings.Contains(text, other.EncryptionConfig()) || !strings.Contains(text, other.CA()) {
		t.Errorf("other files: got %v, %v; want all five named", misfits, err)
	}
	if _, misfits, _ = known.with(other, func(path string) bool { return path != other.EncryptionConfig() }); len(misfits) != 4 {
		t.Errorf("other files, one of them not in use: got %v, want four", misfits)
	}

	var both []byte
	for _, path := range []string{ours.CA(), other.CA()} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, data...)
	}
	if err := os.WriteFile(ours.CA(), both, 0o600); err != nil {
		t.Fatal(err)
	}
	next, misfits, err := known.with(ours, all)
	if err != nil || len(misfits) > 0 || next == nil || len(next.Files["ca.pem"]) != 2 {
		t.Errorf("a second CA beside the first: got %+v, %v, %v; want both known", next, misfits, err)
	}
}
