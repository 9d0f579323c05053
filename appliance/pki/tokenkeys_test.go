package pki

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
)

// tokenFiles makes a directory and reads its files of tokens.
func tokenFiles(t *testing.T) (Layout, TokenFiles) {
	t.Helper()
	l := Layout{Dir: t.TempDir()}
	if _, err := Ensure(l, testSpec()); err != nil {
		t.Fatal(err)
	}
	f, err := ReadTokenFiles(l)
	if err != nil {
		t.Fatal(err)
	}
	return l, f
}

// A key comes, signs and replaces the old one; taken back, the files are as before to the byte.
func TestTokenFiles(t *testing.T) {
	l, before := tokenFiles(t)
	old := before.Signing()[0]
	key, id, err := NewTokenKey()
	if err != nil {
		t.Fatal(err)
	}
	both, err := before.With(key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := both.With(key)
	if err != nil || !bytes.Equal(again.Key, both.Key) || !bytes.Equal(again.Public, both.Public) {
		t.Errorf("the same key a second time: got %v, %v", again.Signing(), err)
	}
	signs := both.SignedBy(id)
	for _, tt := range []struct {
		name              string
		f                 TokenFiles
		accepted, signing []string
	}{
		{"before", before, []string{old}, []string{old}},
		{"published", both, []string{old, id}, []string{old, id}},
		{"signing", signs, []string{old, id}, []string{id, old}},
		{"dropped", signs.Without(old), []string{id}, []string{id}},
	} {
		if got := tt.f.Accepted(); !slices.Equal(got, tt.accepted) {
			t.Errorf("%s: accepted %v, want %v", tt.name, got, tt.accepted)
		}
		if got := tt.f.Signing(); !slices.Equal(got, tt.signing) {
			t.Errorf("%s: signing %v, want %v", tt.name, got, tt.signing)
		}
		if err := tt.f.Write(l); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if _, err := Ensure(l, testSpec()); err != nil {
			t.Errorf("%s: the next start: %v", tt.name, err)
		}
		if info, err := os.Stat(l.Key(NameServiceAccount)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: the key has the mode %v, %v", tt.name, info.Mode(), err)
		}
		secrets, err := SharedSecrets(l, "test")
		if err != nil || len(secrets) != len(tt.signing) || secrets[0].ID != tt.signing[0] {
			t.Errorf("%s: got %d secrets, %v", tt.name, len(secrets), err)
		}
		if first, _ := SharedSecret(l, "test"); !bytes.Equal(first, secrets[0].Key) {
			t.Errorf("%s: the secret is not that of the key that signs", tt.name)
		}
	}
	if back := both.SignedBy(old).Without(id); !bytes.Equal(back.Key, before.Key) || !bytes.Equal(back.Public, before.Public) {
		t.Error("taken back, the files are others than before")
	}
	if got := both.PrivateKey(id); !bytes.Equal(got, key) {
		t.Error("the new key is not found")
	}
}

// A crash between the two files leaves a pair that the next start accepts, in each step and in
// each direction; files that do not fit are refused.
func TestTokenFilesInOrder(t *testing.T) {
	l, f := tokenFiles(t)
	key, id, err := NewTokenKey()
	if err != nil {
		t.Fatal(err)
	}
	both, err := f.With(key)
	if err != nil {
		t.Fatal(err)
	}
	only := both.SignedBy(id).Without(f.Signing()[0])
	if err := (TokenFiles{Public: f.Public, Key: only.Key}).Write(l); err == nil {
		t.Error("files without the public key of the one that signs were written")
	}
	for _, tt := range []struct {
		name string
		next TokenFiles
	}{{"publish", both}, {"take back", f}, {"all at once", only}, {"all at once, back", f}, {"publish again", both}, {"sign", both.SignedBy(id)}, {"drop", only}} {
		is, err := ReadTokenFiles(l)
		if err != nil {
			t.Fatal(err)
		}
		path, last := l.Key(NameServiceAccount), is.Key // what is written last
		if keyFirst(is, tt.next) {
			path, last = l.Cert(NameServiceAccount), is.Public
		}
		if err := tt.next.Write(l); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if err := os.WriteFile(path, last, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Check(l, testSpec()); err != nil && !strings.HasPrefix(tt.name, "all at once") {
			t.Errorf("%s: after a crash between the files: %v", tt.name, err)
		}
		if err := tt.next.Write(l); err != nil {
			t.Fatalf("%s, again: %v", tt.name, err)
		}
	}
}
