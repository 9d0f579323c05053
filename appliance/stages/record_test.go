package stages

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"kthwd/appliance/pki"
	"kthwd/test/etcdtest"
)

// A state is believed with the seal of one key that both sides have, and not after a change, nor for
// another purpose.
func TestSeals(t *testing.T) {
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := pki.Ensure(l, pki.Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil {
		t.Fatal(err)
	}
	seals := func(purpose, state string) Seals {
		t.Helper()
		s, err := SealsOf(l, purpose, state)
		if err != nil || len(s) != 1 {
			t.Fatalf("got %d seals, %v", len(s), err)
		}
		return s
	}
	s := seals("a", "state")
	more := Seals{"another key": []byte("x")}
	for id, seal := range s {
		more[id] = seal
	}
	if !s.Match(seals("a", "state")) || !s.Match(more) {
		t.Error("the same state is not believed")
	}
	for name, other := range map[string]Seals{"another state": seals("a", "changed"), "another purpose": seals("b", "state"), "none": nil, "other keys": {"another key": []byte("x")}} {
		if s.Match(other) {
			t.Errorf("%s is believed", name)
		}
	}
}

// Before the first state there is none, and the error of a value that is no state names its key.
func TestFetch(t *testing.T) {
	client := etcdtest.Client(t, etcdtest.Start(t, false))
	noSeal := errors.New("has no seal")
	var s struct{ Stage string }
	fetch := func() (int64, error) { return aKind.Fetch(t.Context(), client, &s, noSeal) }
	if revision, err := fetch(); revision != 0 || err != nil {
		t.Errorf("before the first: got %d, %v", revision, err)
	}
	put := func(value string) {
		t.Helper()
		if _, err := client.Put(t.Context(), aKind.StateKey(), value); err != nil {
			t.Fatal(err)
		}
	}
	put("no JSON")
	if _, err := fetch(); !errors.Is(err, noSeal) || err.Error() != aKind.StateKey()+" in etcd has no seal" {
		t.Errorf("no state: got %v", err)
	}
	put(`{"stage":"trust"}`)
	if revision, err := fetch(); revision == 0 || err != nil || s.Stage != "trust" {
		t.Errorf("got %+v at %d, %v", s, revision, err)
	}
}

// A kept key is secret, and removed once; another file in its place stays.
func TestKeptKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.next")
	if err := KeepKey(path, []byte("key")); err != nil {
		t.Fatal(err)
	}
	before, err := os.Lstat(path)
	if err != nil || before.Mode().Perm() != 0o600 {
		t.Fatalf("got %v, %v", before.Mode(), err)
	}
	r := NewRunner(RunnerConfig{Kind: aKind})
	if err := KeepKey(path, []byte("another")); err != nil {
		t.Fatal(err)
	}
	r.ForgetKept(path, before)
	if data, err := os.ReadFile(path); err != nil || !slices.Equal(data, []byte("another")) {
		t.Errorf("a newer key was removed: %v", err)
	}
	if before, err = os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	r.ForgetKept(path, before)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if err := ForgetKey(path); err != nil {
		t.Error(err)
	}
	if err := KeepKey(filepath.Join(path, "nowhere"), nil); err == nil {
		t.Error("a key in a directory that does not exist was kept")
	}
}
