package tokenrotation

import (
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
	"kthwd/appliance/tokenkeys"
)

func newLayout(t *testing.T) pki.Layout {
	t.Helper()
	l := pki.Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := pki.Ensure(l, pki.Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil {
		t.Fatal(err)
	}
	return l
}

// begun is a rotation that has just begun in a directory, and its new key.
func begun(t *testing.T, l pki.Layout) (State, pki.TokenFiles, []byte) {
	t.Helper()
	f, err := pki.ReadTokenFiles(l)
	if err != nil {
		t.Fatal(err)
	}
	key, id, err := pki.NewTokenKey()
	if err != nil {
		t.Fatal(err)
	}
	return State{ID: "1", Stage: StagePublish, Old: f.Signing()[0], New: id, Since: time.Now().UTC()}, f, key
}

// Each stage has its form, which also follows from those before it, and what has that form
// confirms the stage and no other.
func TestForms(t *testing.T) {
	l := newLayout(t)
	s, f, key := begun(t, l)
	forms := map[Stage]pki.TokenFiles{}
	for _, stage := range []Stage{StagePublish, StageSign, StageWatch, StageDrop} {
		s.Stage = stage
		next, err := form(s, f, key)
		if err != nil {
			t.Fatalf("%s: %v", stage, err)
		}
		for earlier, before := range forms {
			again, err := form(s, before, nil)
			if err != nil || !slices.Equal(again.Signing(), next.Signing()) || !slices.Equal(again.Accepted(), next.Accepted()) {
				t.Errorf("%s after %s: got %v, want %v, %v", stage, earlier, again.Signing(), next.Signing(), err)
			}
		}
		forms[stage] = next
	}
	for stage, files := range forms {
		c := Controller{Accepts: files.Accepted(), Signs: files.Signing()[0], Manager: files.Signing()[0], Files: files.Signing()}
		for _, other := range order {
			s.Stage = other
			same := slices.Equal(files.Signing(), forms[other].Signing())
			if err := confirmed(s, c); (err == nil) != same {
				t.Errorf("files of %s in the stage %s: got %v", stage, other, err)
			}
		}
		s.Stage, c.Manager = stage, "another"
		if err := confirmed(s, c); err == nil {
			t.Errorf("%s: kube-controller-manager signs with another key", stage)
		}
	}
	s.Stage, s.Back = StageDrop, true
	back, err := form(s, forms[StagePublish], nil)
	if err != nil || string(back.Key) != string(f.Key) || string(back.Public) != string(f.Public) {
		t.Errorf("taken back: got %v, %v", back.Signing(), err)
	}
	s.Stage, s.Back = StageSign, false
	if _, err := form(s, f, nil); err == nil || !strings.Contains(err.Error(), "lacks the key "+Short(s.New)) {
		t.Errorf("without the new key: got %v", err)
	}
	other, _, err := pki.NewTokenKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := form(s, f, other); err == nil {
		t.Error("another key than that of the rotation was taken")
	}
	s.Old = "unknown"
	if _, err := form(s, f, key); err == nil {
		t.Error("a controller without the old key took the new one")
	}
}

// A state is believed by a controller that has missed the new key, as by one that has dropped the
// old one, and a changed state by nobody. Files of another time are not admitted.
func TestSealsAndAdmission(t *testing.T) {
	l := newLayout(t)
	s, f, key := begun(t, l)
	sealed := func(s State) bool {
		want, err := s.seals(l)
		if err != nil {
			t.Fatal(err)
		}
		for id, seal := range want {
			if string(seal) == string(s.Seals[id]) {
				return true
			}
		}
		return false
	}
	write := func(f pki.TokenFiles) {
		t.Helper()
		if err := f.Write(l); err != nil {
			t.Fatal(err)
		}
	}
	s.Stage = StageSign
	signs, err := form(s, f, key)
	if err != nil {
		t.Fatal(err)
	}
	write(signs)
	if s.Seals, err = s.seals(l); err != nil || len(s.Seals) != 2 {
		t.Fatalf("got %d seals, %v", len(s.Seals), err)
	}
	forged := s
	forged.Stage = StageDrop
	if !sealed(s) || sealed(forged) {
		t.Error("its own state is not believed, or a changed one is")
	}
	if err := s.admits(l); err != nil {
		t.Errorf("with both keys: %v", err)
	}
	write(f)
	if !sealed(s) {
		t.Error("a controller that has missed the new key does not believe the state")
	}
	if err := s.admits(l); err == nil || !strings.Contains(err.Error(), "is being rotated") {
		t.Errorf("without the new key: got %v", err)
	}
	done := s
	done.Stage = StageDone
	if err := done.admits(l); err == nil || !strings.Contains(err.Error(), "has dropped") {
		t.Errorf("with the key that was dropped: got %v", err)
	}
	write(signs)
	write(signs.Without(s.Old))
	if !sealed(s) {
		t.Error("a controller that has dropped the old key does not believe the state")
	}
	if err := errors.Join(s.admits(l), done.admits(l)); err != nil {
		t.Errorf("with the new key alone: %v", err)
	}
}

// The old key is dropped without force only after a day in which every controller has watched, and
// has seen nobody use it.
func TestMayDrop(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	account := []tokenkeys.Client{{Account: "system:serviceaccount:shop:web", Address: "10.0.0.7"}}
	for _, tt := range []struct {
		name string
		use  *tokenkeys.Use
		want string
	}{
		{"nobody for two days", &tokenkeys.Use{Since: ago(48 * time.Hour)}, ""},
		{"somebody, two days ago", &tokenkeys.Use{Since: ago(72 * time.Hour), Count: 3, Last: ago(48 * time.Hour), Clients: account}, ""},
		{"somebody, an hour ago", &tokenkeys.Use{Since: ago(72 * time.Hour), Count: 3, Last: ago(time.Hour), Clients: account}, "c1 saw system:serviceaccount:shop:web at 10.0.0.7"},
		{"since an hour", &tokenkeys.Use{Since: ago(time.Hour)}, "c1 has watched the old key since"},
		{"not yet", nil, "c1 has not watched"},
	} {
		all := []Controller{{Answer: stages.Answer{Name: "c0"}, Use: &tokenkeys.Use{Since: ago(48 * time.Hour)}}, {Answer: stages.Answer{Name: "c1"}, Use: tt.use}}
		err := mayDrop(State{Old: "old"}, all, now)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// Keys follow their files, and keep what they have when the files do not fit.
func TestKeys(t *testing.T) {
	l := newLayout(t)
	s, f, key := begun(t, l)
	loaded, changed := 0, 0
	k := NewKeys(KeysConfig{Accepted: []string{l.Cert(pki.NameServiceAccount)}, Signing: l.Key(pki.NameServiceAccount), Loaded: func() { loaded++ }})
	if _, err := k.InUse(); err == nil {
		t.Error("in use before the first Load")
	}
	k.Use(func() { changed++ })
	for range 2 {
		if err := k.Load(); err != nil {
			t.Fatal(err)
		}
	}
	if loaded+changed != 0 || k.Current().SignerID != s.Old {
		t.Errorf("the same files: %d times loaded, %d changed, signed by %s", loaded, changed, k.Current().SignerID)
	}
	s.Stage = StageSign
	next, err := form(s, f, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(next.Write(l), k.Load()); err != nil {
		t.Fatal(err)
	}
	set, err := k.InUse()
	if err != nil || set.SignerID != s.New || !slices.Equal(set.IDs(), []string{s.Old, s.New}) || loaded != 1 || changed != 1 {
		t.Errorf("got %v of %v, %d times loaded, %d changed, %v", set.SignerID, set.IDs(), loaded, changed, err)
	}
}
