package member

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
)

func newTestToken(t *testing.T) Token {
	t.Helper()
	token, err := NewToken(sha256.Sum256([]byte("ca")), []string{"10.0.1.73:10301", "[fd00::1]:10301"})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestToken(t *testing.T) {
	token := newTestToken(t)
	got, err := ParseToken("  " + token.String() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != token.ID || !bytes.Equal(got.Secret, token.Secret) || got.CA != token.CA || strings.Join(got.Addresses, " ") != strings.Join(token.Addresses, " ") {
		t.Errorf("got %+v, want %+v", got, token)
	}
	if !bytes.Equal(got.Hash(), token.Hash()) || bytes.Contains(token.Hash(), token.Secret) {
		t.Errorf("the hash: got %x, want %x", got.Hash(), token.Hash())
	}
	if other := newTestToken(t); other.ID == token.ID || bytes.Equal(other.Secret, token.Secret) || bytes.Equal(other.Hash(), token.Hash()) {
		t.Errorf("two tokens are alike: %+v and %+v", other, token)
	}
}

// A token with one character changed or missing is refused.
func TestDamagedToken(t *testing.T) {
	s := newTestToken(t).String()
	for i := range len(s) {
		other := byte('A')
		if s[i] == other {
			other = 'Q'
		}
		for _, damaged := range []string{s[:i] + string(other) + s[i+1:], s[:i] + s[i+1:], s[:i]} {
			token, err := ParseToken(damaged)
			var refusal *Refusal
			if err != nil && errors.As(err, &refusal) && refusal.Advice != "" && !strings.Contains(err.Error(), s[10:20]) {
				continue
			}
			if err == nil && token.String() == s { // the last character has bits to spare
				continue
			}
			t.Fatalf("character %d of %d: got %+v, %v; want a refusal with advice", i, len(s), token, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	token, err := NewToken([32]byte{1}, []string{"10.0.1.73:10301"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token.String())
	f.Add("kthwd1.")
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := ParseToken(s); err == nil {
			if again, err := ParseToken(token.String()); err != nil || again.ID != token.ID {
				t.Errorf("%q: got %+v, and of that %+v (%v)", s, token, again, err)
			}
		}
	})
}

func TestFits(t *testing.T) {
	cluster := Versions{Kthwd: "v1.2.0", Kubernetes: "v1.36.3", Etcd: "3.6.16"}
	for _, tt := range []struct{ kubernetes, etcd, want string }{
		{"v1.36.3", "3.6.16", ""},
		{"v1.36.0", "3.6.1", ""},
		{"v1.37.0", "3.6.16", "the kthwd that wants to join has Kubernetes v1.37.0, the cluster has v1.36.3: the minor versions must be the same"},
		{"v1.3.6", "3.6.16", "the kthwd that wants to join has Kubernetes v1.3.6, the cluster has v1.36.3: the minor versions must be the same"},
		{"v1.36.3", "3.5.21", "the kthwd that wants to join has etcd 3.5.21, the cluster has 3.6.16: the minor versions must be the same"},
		{"", "3.6.16", "the kthwd that wants to join has Kubernetes , the cluster has v1.36.3: the minor versions must be the same"},
	} {
		got := ""
		if err := cluster.Fits(Versions{Kubernetes: tt.kubernetes, Etcd: tt.etcd}); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s and %s: got %q, want %q", tt.kubernetes, tt.etcd, got, tt.want)
		}
	}
}

func TestMayAdd(t *testing.T) {
	joining := func(l List) List {
		l.Members = append(l.Members, Member{Name: "c8", Address: "10.0.1.8", Role: Joining})
		return l
	}
	for _, tt := range []struct {
		list          List
		name, address string
		want          string
	}{
		{voters("u"), "c9", "10.0.1.9", ""},
		{voters("uu"), "c9", "10.0.1.9", ""},
		{voters("uuu"), "c9", "10.0.1.9", ""},
		{joining(voters("u")), "c8", "10.0.1.8", ""},
		{joining(voters("u")), "c9", "10.0.1.9", ""},
		{joining(voters("u")), "c8", "10.0.1.9", "there is a token for c8 at 10.0.1.8, not for c8 at 10.0.1.9"},
		{joining(voters("u")), "c9", "10.0.1.8", "there is a token for c8 at 10.0.1.8, not for c9 at 10.0.1.8"},
		{voters("uu"), "c1", "10.0.1.9", "c1 is a member already, at 10.0.1.2"},
		{voters("uu"), "c9", "10.0.1.2", "10.0.1.2 is the address of c1, which is a member already"},
		{voters("ul"), "c1", "10.0.1.2", "c1 is a member already, at 10.0.1.2"},
		{voters("uud"), "c9", "10.0.1.9", "2 of 3 members are up, and 3 must be up to add another one"},
		{voters("ud"), "c9", "10.0.1.9", "1 of 2 members are up, and 2 must be up to add another one"},
		{voters("uuuud"), "c9", "10.0.1.9", ""},
	} {
		got := ""
		if err := tt.list.MayAdd(tt.name, tt.address); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s at %s: got %q, want %q", tt.name, tt.address, got, tt.want)
		}
	}
}
