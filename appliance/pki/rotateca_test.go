package pki

import (
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func madeLayout(t *testing.T) Layout {
	t.Helper()
	l := Layout{Dir: filepath.Join(t.TempDir(), "data")}
	if _, err := Ensure(l, Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil {
		t.Fatal(err)
	}
	return l
}

func clusterCA(t *testing.T, l Layout) ClusterCA {
	t.Helper()
	c, err := ReadClusterCA(l)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A directory goes from one CA to another: it can start at each step, its certificates are of the CA
// that signs, and its kubeconfigs trust what ca.pem has.
func TestRotateCA(t *testing.T) {
	l := madeLayout(t)
	spec := Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}
	written, err := os.ReadFile(l.CA())
	if err == nil {
		written = append([]byte("# the CA of the shop\n"), written...)
		err = os.WriteFile(l.CA(), written, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	old := clusterCA(t, l)
	if err := CARotatable(l, 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	ca, key, err := NewClusterCA(old.Signer, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if ca.Subject.String() == old.Signer.Subject.String() || CAID(ca) == old.Signs() || !KeyOfCA(key, ca) || KeyOfCA(old.Key, ca) {
		t.Fatalf("the new CA %q, the old one %q", ca.Subject, old.Signer.Subject)
	}
	step := func(name string, trusted []*x509.Certificate, key, next []byte, signs *x509.Certificate) {
		t.Helper()
		if _, err := SetClusterCA(l, trusted, key, next); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := Renew(l, RenewOptions{Moved: true}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		is := clusterCA(t, l)
		if is.Signs() != CAID(signs) || !slices.Equal(is.Next, next) || len(is.Trusted) != len(trusted) {
			t.Errorf("%s: got %v, %s signs", name, is.IDs(), is.Signs())
		}
		if late := SignedByOthers(l, signs); len(late) > 0 {
			t.Errorf("%s: of another CA: %v", name, late)
		}
		r, err := Check(l, spec)
		if err != nil || len(r.Missing) > 0 {
			t.Errorf("%s: it cannot start: %v, %v", name, r.Missing, err)
		}
		for _, k := range []string{NameAdmin, NameControllerManager, NameScheduler} {
			_, a, err := embedded(l.Kubeconfig(k))
			if err != nil || len(a.cas) != len(trusted) || !signed(a.client.chain, []*x509.Certificate{signs}) {
				t.Errorf("%s: %s trusts %d CAs, want %d: %v", name, k, len(a.cas), len(trusted), err)
			}
		}
	}
	before := clusterCA(t, l).Trusted
	step("trust", append(slices.Clone(before), ca), old.Key, key, old.Signer)
	if SignedByOthers(l, old.Signer) != nil || len(SignedByOthers(l, ca)) == 0 {
		t.Error("the old CA signs, and nothing is of another one")
	}
	step("taken back", before, old.Key, nil, old.Signer)
	if is, err := os.ReadFile(l.CA()); err != nil || string(is) != string(written) {
		t.Errorf("taken back, ca.pem is another file: %v\n%s", err, is)
	}
	step("trust", append(slices.Clone(before), ca), old.Key, key, old.Signer)
	tokens, err := ReadTokenFiles(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if changed, err := PublicTokenKeys(l); err != nil || changed != want {
			t.Errorf("the public keys of tokens: got %v, %v", changed, err)
		}
	}
	if is, err := ReadTokenFiles(l); err != nil || !slices.Equal(is.Accepted(), tokens.Accepted()) || len(is.Accepted()) != 1 {
		t.Errorf("tokens of %v are accepted, before of %v: %v", is.Accepted(), tokens.Accepted(), err)
	}
	step("sign", append(slices.Clone(before), ca), key, nil, ca)
	step("drop", []*x509.Certificate{ca}, key, nil, ca)
	if _, err := SetClusterCA(l, before, key, nil); err == nil {
		t.Error("a directory without the CA whose key signs was written")
	}
	if is := clusterCA(t, l); len(is.Trusted) != 1 || is.Signs() != CAID(ca) {
		t.Errorf("after a refusal: got %v, %s signs", is.IDs(), is.Signs())
	}
}

// With a file of the user's in place of one of kthwd's, kthwd cannot rotate, and says which file.
// Without the key it can.
func TestCANotRotatable(t *testing.T) {
	want := func(l Layout, file string) {
		t.Helper()
		err := CARotatable(l, 0, time.Now())
		var misfit *Misfit
		if !errors.As(err, &misfit) || misfit.File != file || misfit.Hint == "" {
			t.Errorf("got %v, want %s named", err, file)
		}
	}
	l := madeLayout(t)
	if err := os.Remove(l.CAKey()); err != nil {
		t.Fatal(err)
	}
	if err := CARotatable(l, 0, time.Now()); err != nil {
		t.Error(err)
	}
	l = madeLayout(t)
	elsewhere := filepath.Join(t.TempDir(), "kubernetes.pem")
	if err := os.Rename(l.Cert(NameKubernetes), elsewhere); err != nil {
		t.Fatal(err)
	}
	l.Elsewhere = map[string]string{"kubernetes.pem": elsewhere}
	want(l, elsewhere)
}
