package carotation

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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
func begun(t *testing.T, l pki.Layout) (State, pki.CA, []byte) {
	t.Helper()
	is := read(t, l)
	ca, key, err := pki.NewCA(is.Signer, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return State{ID: "1", Stage: StageTrust, Old: is.Signs(), New: pki.CAID(ca), Certificate: ca.Raw, Before: is.Signer.Raw, Since: time.Now().UTC()}, is, key
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
	all := []Stage{StageTrust, StageSign, StageDrop}
	forms := map[Stage]pki.CA{}
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
		if stage != StageDrop { // a controller that has missed it comes from the files before
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
	s.Stage, s.Back = StageDrop, true
	f, err := Cluster.authority().form(s, "c0", forms[StageTrust], nil)
	if err != nil || len(f.trusted) != 1 || pki.CAID(f.trusted[0]) != s.Old || !slices.Equal(f.key, is.Key) || f.next != nil {
		t.Errorf("taken back: got %d CAs, %v", len(f.trusted), err)
	}
	if _, err := Cluster.authority().form(s, "c0", forms[StageSign], nil); err == nil {
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
		for _, stage := range []Stage{StageTrust, StageSign, StageDrop} {
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

// What is not as the stage wants it is said.
func TestNotConfirmed(t *testing.T) {
	s, is, key := begun(t, newLayout(t))
	ca, err := s.ca()
	if err != nil {
		t.Fatal(err)
	}
	s.Stage = StageSign
	good := as(pki.CA{Trusted: []*x509.Certificate{is.Signer, ca}, Key: key, Signer: ca})
	if err := Cluster.authority().confirmed(s, good); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Controller){
		"kube-controller-manager":              func(c *Controller) { c.Manager = false },
		"does not show a certificate":          func(c *Controller) { c.Serves = s.Old },
		"accepts certificates of":              func(c *Controller) { c.Accepts = []string{s.New} },
		"not signed by":                        func(c *Controller) { c.Late = []string{"admin.kubeconfig"} },
		"signs with " + Short(s.Old) + ", and": func(c *Controller) { c.Signs = s.Old },
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
	ca, err := s.ca()
	if err != nil {
		t.Fatal(err)
	}
	want := func(stage Stage, said string) {
		t.Helper()
		s.Stage = stage
		if err := Cluster.authority().admits(s, l); (err == nil) != (said == "") || err != nil && !strings.Contains(err.Error(), said) {
			t.Errorf("%s: got %v, want %q", stage, err, said)
		}
	}
	want(StageTrust, "")
	want(StageDistribute, "")
	want(StageSign, "lacks the CA "+Short(s.New))
	want(StageDone, "still has the CA "+Short(s.Old))
	if _, err := pki.SetCA(l, pki.NameCA, []*x509.Certificate{is.Signer, ca}, key, nil); err != nil {
		t.Fatal(err)
	}
	want(StageWatch, "")
	want(StageDone, "still has the CA "+Short(s.Old))
	if _, err := pki.SetCA(l, pki.NameCA, []*x509.Certificate{ca}, key, nil); err != nil {
		t.Fatal(err)
	}
	want(StageDone, "")
}

// The old CA's users are named, each once, and nobody else; without a rotation nothing is kept.
func TestWatch(t *testing.T) {
	l := newLayout(t)
	s, is, _ := begun(t, l)
	ca, err := s.ca()
	if err != nil {
		t.Fatal(err)
	}
	of := func(issuer *x509.Certificate) *x509.Certificate {
		return &x509.Certificate{AuthorityKeyId: issuer.SubjectKeyId}
	}
	w := &Watch{}
	w.Used(of(is.Signer), "early", "10.0.0.1:1")
	if w.Use(s.Old) != nil {
		t.Error("without a rotation: something is watched")
	}
	w.Of(is.Signer)
	w.Used(of(ca), "new", "10.0.0.2:1")
	w.Used(of(is.Signer), "jane", "10.0.0.3:1")
	w.Used(of(is.Signer), "joe", "10.0.0.4:1")
	w.Used(of(is.Signer), "jane", "[fd00::3]:1")
	w.Of(is.Signer) // changes nothing
	use := w.Use(s.Old)
	if use == nil || use.Count != 3 || len(use.Clients) != 2 || !slices.ContainsFunc(use.Clients, func(c Client) bool { return c.User == "jane" && c.Address == "fd00::3" }) {
		t.Errorf("got %+v", use)
	}
	if w.Use(s.New) != nil {
		t.Error("the new CA is watched")
	}
	for i := range 2 * clientsMax {
		w.Used(of(is.Signer), strings.Repeat("x", i+1), "10.0.0.5:1")
	}
	if got := len(w.Use(s.Old).Clients); got != clientsMax {
		t.Errorf("%d users are kept, want %d", got, clientsMax)
	}
}

// The old CA is not dropped while somebody needs it, or while that is not known.
func TestMayDrop(t *testing.T) {
	now := time.Now()
	s := State{Old: "0123456789"}
	for want, use := range map[string]*Use{
		"has not watched": nil,
		"still in use":    {Since: now.Add(-48 * time.Hour), Count: 1, Last: now.Add(-time.Hour), Clients: []Client{{User: "jane"}}},
		"since":           {Since: now.Add(-time.Hour)},
		"":                {Since: now.Add(-48 * time.Hour), Count: 1, Last: now.Add(-30 * time.Hour)},
	} {
		err := Cluster.authority().mayDrop(s, []Controller{{Use: use}}, now)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
