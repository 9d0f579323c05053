package carotation

import (
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/carotation/watch"
	"kthwd/appliance/pki"
	"kthwd/appliance/stages"
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
func begun(t *testing.T, l pki.Layout) (castate.State, pki.CA, []byte) {
	t.Helper()
	is := read(t, l)
	ca, key, err := pki.NewCA(is.Signer, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return castate.State{ID: "1", Stage: castate.StageTrust, Old: is.Signs(), New: pki.CAID(ca), Certificate: ca.Raw, Before: is.Signer.Raw, Since: time.Now().UTC()}, is, key
}

func read(t *testing.T, l pki.Layout) pki.CA {
	t.Helper()
	is, err := pki.ReadCA(l, pki.NameCA)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// as answers as a controller does whose files have that form.
func as(is pki.CA) Controller {
	return Controller{Answer: stages.Answer{Name: "c0"}, Trusts: is.IDs(), Accepts: is.IDs(), Signs: is.Signs(), Serves: is.Signs(), Manager: true}
}

// Each stage has its form, which also follows from those before it, and what has that form
// confirms the stage and no other.
func TestForms(t *testing.T) {
	l := newLayout(t)
	s, is, key := begun(t, l)
	all := []castate.Stage{castate.StageTrust, castate.StageSign, castate.StageDrop}
	forms := map[castate.Stage]pki.CA{}
	for _, stage := range all {
		s.Stage = stage
		f, err := Cluster.authority().form(s, "c0", read(t, l), key)
		if err != nil {
			t.Fatalf("%s: %v", stage, err)
		}
		if _, err := pki.SetCA(l, pki.NameCA, f.trusted, f.key, f.next); err != nil {
			t.Fatalf("%s: %v", stage, err)
		}
		forms[stage] = read(t, l)
		if stage != castate.StageDrop { // a controller that has missed it comes from the files before
			f, err := Cluster.authority().form(s, "c0", is, key)
			if err != nil || len(f.trusted) != 2 || !pki.KeyOfCA(f.key, forms[stage].Signer) {
				t.Errorf("%s from the beginning: got %d CAs, %v", stage, len(f.trusted), err)
			}
		}
		if _, err := Cluster.authority().form(s, "c0", is, nil); err == nil {
			t.Errorf("%s without the new key: no error", stage)
		}
		if again, err := Cluster.authority().form(s, "c0", forms[stage], nil); err != nil || len(again.trusted) != len(forms[stage].Trusted) || !slices.Equal(again.key, forms[stage].Key) {
			t.Errorf("%s again: got %d CAs, %v", stage, len(again.trusted), err)
		}
	}
	for _, stage := range all {
		for of, is := range forms {
			s.Stage = stage
			if err := Cluster.authority().confirmed(s, as(is)); (err == nil) != (stage == of) {
				t.Errorf("the form of %s in the stage %s: got %v", of, stage, err)
			}
		}
	}
	s.Stage, s.Back = castate.StageDrop, true
	f, err := Cluster.authority().form(s, "c0", forms[castate.StageTrust], nil)
	if err != nil || len(f.trusted) != 1 || pki.CAID(f.trusted[0]) != s.Old || !slices.Equal(f.key, is.Key) || f.next != nil {
		t.Errorf("taken back: got %d CAs, %v", len(f.trusted), err)
	}
	if _, err := Cluster.authority().form(s, "c0", forms[castate.StageSign], nil); err == nil {
		t.Error("taken back after the new CA has signed: no error")
	}
}

// A controller that has no key of the CA signs with the new one as long as it needs to, and has
// none afterwards; the one that has made the new CA keeps its key.
func TestFormsWithoutKey(t *testing.T) {
	for _, name := range []string{"c0", "c1"} {
		l := newLayout(t)
		s, _, key := begun(t, l)
		s.Origin = "c0"
		if err := os.Remove(l.CAKey()); err != nil {
			t.Fatal(err)
		}
		for _, stage := range []castate.Stage{castate.StageTrust, castate.StageSign, castate.StageDrop} {
			s.Stage = stage
			f, err := Cluster.authority().form(s, name, read(t, l), key)
			if err != nil {
				t.Fatalf("%s, %s: %v", name, stage, err)
			}
			key = nil // from the second stage on it is here
			for _, trusted := range [][]*x509.Certificate{withAll(f.trusted, read(t, l).Trusted), f.trusted} {
				if _, err := pki.SetCA(l, pki.NameCA, trusted, f.key, f.next); err != nil {
					t.Fatalf("%s, %s: %v", name, stage, err)
				}
				if f.signs != nil {
					if _, err := pki.Renew(l, pki.RenewOptions{Moved: pki.NameCA, CAKey: f.signs}); err != nil {
						t.Fatalf("%s, %s: %v", name, stage, err)
					}
				}
			}
			if is := read(t, l); Cluster.authority().confirmed(s, as(is)) != nil || len(pki.SignedByOthers(l, pki.NameCA, is.Signer)) > 0 {
				t.Errorf("%s, %s: %v, of others: %v", name, stage, Cluster.authority().confirmed(s, as(is)), pki.SignedByOthers(l, pki.NameCA, is.Signer))
			}
		}
		is := read(t, l)
		if has := is.Key != nil; has != (name == "c0") || is.Next != nil || is.Signs() != s.New {
			t.Errorf("%s at the end: a key %v, one for later %v, %s signs", name, has, is.Next != nil, is.Signs())
		}
		end := time.Now().AddDate(5, 0, 0)
		entry := pki.Used(l.Cert(pki.NameKubernetes))[0]
		if long := entry.NotAfter.After(end); long != (name == "c1") {
			t.Errorf("%s: kubernetes.pem ends on %s", name, entry.NotAfter)
		}
	}
}

// A controller that keeps no key of the CA has it until it has signed with it, also when that fails.
func TestSigningFails(t *testing.T) {
	l := newLayout(t)
	s, _, key := begun(t, l)
	s.Origin, s.Stage = "c0", castate.StageTrust
	if err := os.Remove(l.CAKey()); err != nil {
		t.Fatal(err)
	}
	r := &Rotation{cfg: Config{Layout: l, Changed: func([]string) {}}, a: Cluster.authority()}
	replace := func(key []byte, sign error) error {
		t.Helper()
		f, err := r.a.form(s, "c1", read(t, l), key)
		if err != nil {
			t.Fatal(err)
		}
		return r.replace(read(t, l), f, func() error { return sign })
	}
	if err := replace(key, nil); err != nil {
		t.Fatal(err)
	}
	s.Stage = castate.StageSign
	full := errors.New("no space left on device")
	for range 2 {
		if err := replace(nil, full); !errors.Is(err, full) {
			t.Errorf("%v; want %v", err, full)
		}
	}
	if err := replace(nil, nil); err != nil || read(t, l).Next != nil {
		t.Errorf("once it has signed: %v; is the key here? %v", err, read(t, l).Next != nil)
	}
}

// What is not as the stage wants it is said.
func TestNotConfirmed(t *testing.T) {
	s, is, key := begun(t, newLayout(t))
	ca, err := s.CA()
	if err != nil {
		t.Fatal(err)
	}
	s.Stage = castate.StageSign
	good := as(pki.CA{Trusted: []*x509.Certificate{is.Signer, ca}, Key: key, Signer: ca})
	if err := Cluster.authority().confirmed(s, good); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Controller){
		"kube-controller-manager":                      func(c *Controller) { c.Manager = false },
		"does not show a certificate":                  func(c *Controller) { c.Serves = s.Old },
		"accepts certificates of":                      func(c *Controller) { c.Accepts = []string{s.New} },
		"not signed by":                                func(c *Controller) { c.Late = []string{"admin.kubeconfig"} },
		"signs with " + castate.Short(s.Old) + ", and": func(c *Controller) { c.Signs = s.Old },
	} {
		c := good
		spoil(&c)
		if err := Cluster.authority().confirmed(s, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A controller with the files of another time is not admitted.
func TestAdmits(t *testing.T) {
	l := newLayout(t)
	s, is, key := begun(t, l)
	ca, err := s.CA()
	if err != nil {
		t.Fatal(err)
	}
	want := func(stage castate.Stage, said string) {
		t.Helper()
		s.Stage = stage
		if err := Cluster.authority().admits(s, l); (err == nil) != (said == "") || err != nil && !strings.Contains(err.Error(), said) {
			t.Errorf("%s: got %v, want %q", stage, err, said)
		}
	}
	want(castate.StageTrust, "")
	want(castate.StageDistribute, "")
	want(castate.StageSign, "lacks the CA "+castate.Short(s.New))
	want(castate.StageDone, "still has the CA "+castate.Short(s.Old))
	if _, err := pki.SetCA(l, pki.NameCA, []*x509.Certificate{is.Signer, ca}, key, nil); err != nil {
		t.Fatal(err)
	}
	want(castate.StageWatch, "")
	want(castate.StageDone, "still has the CA "+castate.Short(s.Old))
	if _, err := pki.SetCA(l, pki.NameCA, []*x509.Certificate{ca}, key, nil); err != nil {
		t.Fatal(err)
	}
	want(castate.StageDone, "")
}

// The old CA is not dropped while somebody needs it, or while that is not known.
func TestMayDrop(t *testing.T) {
	now := time.Now()
	s := castate.State{Old: "0123456789"}
	for want, use := range map[string]*watch.Use{
		"has not watched": nil,
		"still in use":    {Since: now.Add(-48 * time.Hour), Count: 1, Last: now.Add(-time.Hour), Clients: []watch.Client{{User: "jane"}}},
		"since":           {Since: now.Add(-time.Hour)},
		"":                {Since: now.Add(-48 * time.Hour), Count: 1, Last: now.Add(-30 * time.Hour)},
	} {
		err := Cluster.authority().mayDrop(s, []Controller{{Use: use}}, now)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
