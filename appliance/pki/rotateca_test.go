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

func clusterCA(t *testing.T, l Layout) CA {
	t.Helper()
	c, err := ReadCA(l, NameCA)
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
	if err := CARotatable(l, NameCA, 0, time.Now()); err != nil {
		t.Fatal(err)
	}
	ca, key, err := NewCA(old.Signer, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if ca.Subject.String() == old.Signer.Subject.String() || CAID(ca) == old.Signs() || !KeyOfCA(key, ca) || KeyOfCA(old.Key, ca) {
		t.Fatalf("the new CA %q, the old one %q", ca.Subject, old.Signer.Subject)
	}
	step := func(name string, trusted []*x509.Certificate, key, next []byte, signs *x509.Certificate) {
		t.Helper()
		if _, err := SetCA(l, NameCA, trusted, key, next); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := Renew(l, RenewOptions{Moved: NameCA}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		is := clusterCA(t, l)
		if is.Signs() != CAID(signs) || !slices.Equal(is.Next, next) || len(is.Trusted) != len(trusted) {
			t.Errorf("%s: got %v, %s signs", name, is.IDs(), is.Signs())
		}
		if late := SignedByOthers(l, NameCA, signs); len(late) > 0 {
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
	if SignedByOthers(l, NameCA, old.Signer) != nil || len(SignedByOthers(l, NameCA, ca)) == 0 {
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
	if _, err := SetCA(l, NameCA, before, key, nil); err == nil {
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
		err := CARotatable(l, NameCA, 0, time.Now())
		var misfit *Misfit
		if !errors.As(err, &misfit) || misfit.File != file || misfit.Hint == "" {
			t.Errorf("got %v, want %s named", err, file)
		}
	}
	l := madeLayout(t)
	if err := os.Remove(l.CAKey()); err != nil {
		t.Fatal(err)
	}
	if err := CARotatable(l, NameCA, 0, time.Now()); err != nil {
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

// The front proxy's CA goes from one to the other in the same way, and nothing of the cluster's changes.
func TestRotateFrontProxyCA(t *testing.T) {
	const name = NameFrontProxyCA
	for _, keyHere := range []bool{true, false} {
		l := madeLayout(t)
		if !keyHere {
			if err := os.Remove(l.Key(name)); err != nil {
				t.Fatal(err)
			}
		}
		read := func() CA {
			t.Helper()
			c, err := ReadCA(l, name)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		cluster, err := os.ReadFile(l.Kubeconfig(NameAdmin))
		if err != nil {
			t.Fatal(err)
		}
		old := read()
		if err := CARotatable(l, name, 0, time.Now()); err != nil {
			t.Fatal(err)
		}
		ca, key, err := NewCA(old.Signer, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			trusted           []*x509.Certificate
			key, next, leaves []byte
			signs             *x509.Certificate
		}{
			{[]*x509.Certificate{old.Signer, ca}, old.Key, key, nil, old.Signer},
			{[]*x509.Certificate{old.Signer, ca}, key, nil, key, ca},
			{[]*x509.Certificate{ca}, key, nil, key, ca},
		} {
			if !keyHere {
				step.key = nil
			}
			if _, err := SetCA(l, name, step.trusted, step.key, step.next); err != nil {
				t.Fatal(err)
			}
			if step.leaves != nil {
				if _, err := Renew(l, RenewOptions{Moved: name, CAKey: step.leaves}); err != nil {
					t.Fatal(err)
				}
			}
			is := read()
			if is.Signs() != CAID(step.signs) || len(is.Trusted) != len(step.trusted) || (is.Key != nil) != keyHere || len(SignedByOthers(l, name, step.signs)) > 0 {
				t.Errorf("got %v, %s signs, of others: %v", is.IDs(), is.Signs(), SignedByOthers(l, name, step.signs))
			}
			if r, err := Check(l, Spec{Server: "https://127.0.0.1:6443", Local: []string{"127.0.0.1"}, ServiceIP: net.ParseIP("10.32.0.1")}); err != nil || len(r.Missing) > 0 {
				t.Errorf("it cannot start: %v, %v", r.Missing, err)
			}
			if shown := Shows(l, name, step.trusted); shown != CAID(step.signs) {
				t.Errorf("the controller's certificate is of %s", shown)
			}
		}
		if now, err := os.ReadFile(l.Kubeconfig(NameAdmin)); err != nil || string(now) != string(cluster) || len(clusterCA(t, l).Trusted) != 1 {
			t.Errorf("the cluster's CA has changed, too: %v", err)
		}
	}
}

// A CA is taken out of a list, and the text of the others stays.
func TestWithoutCA(t *testing.T) {
	l := madeLayout(t)
	ca, proxy := clusterCA(t, l).Signer, parsedOf(t, l.Cert(NameFrontProxyCA))
	both := append([]byte("# the first\n"), encodeCertificates([]*x509.Certificate{proxy, ca})...)
	rest, others := WithoutCA(both, ca)
	if want := "# the first\n" + string(encodeCertificates([]*x509.Certificate{proxy})); string(rest) != want || others != 1 {
		t.Errorf("got %d others and\n%s", others, rest)
	}
	if again, others := WithoutCA(rest, ca); string(again) != string(rest) || others != 1 {
		t.Errorf("again: got %d others and\n%s", others, again)
	}
	if _, others := WithoutCA(rest, proxy); others != 0 {
		t.Errorf("without the last one: got %d others", others)
	}
}

func parsedOf(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	cert, err := leafOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
