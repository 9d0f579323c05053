package carotation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/advice"
	"kthwd/appliance/carotation/castate"
	"kthwd/appliance/carotation/handshake"
	"kthwd/appliance/pki"
)

func readEtcd(t *testing.T, l pki.Layout) pki.CA {
	t.Helper()
	is, err := pki.ReadCA(l, pki.NameEtcdCA)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// begunEtcd is a rotation of etcd's CA that has just begun in a directory, and its new key.
func begunEtcd(t *testing.T, l pki.Layout) (castate.State, []byte) {
	t.Helper()
	is := readEtcd(t, l)
	ca, key, err := pki.NewCA(is.Signer, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return castate.State{ID: "1", Stage: castate.StageTrust, Origin: "c0", Old: is.Signs(), New: pki.CAID(ca), Certificate: ca.Raw, Before: is.Signer.Raw}, key
}

// take gives a directory the files of a stage.
func take(t *testing.T, l pki.Layout, s castate.State, key []byte) {
	t.Helper()
	f, err := Etcd.authority().form(s, "c0", readEtcd(t, l), key)
	if err != nil {
		t.Fatalf("%s: %v", s.Stage, err)
	}
	for _, trusted := range [][]*x509.Certificate{withAll(f.trusted, readEtcd(t, l).Trusted), f.trusted} {
		if _, err := pki.SetCA(l, pki.NameEtcdCA, trusted, f.key, f.next); err != nil {
			t.Fatalf("%s: %v", s.Stage, err)
		}
		if f.signs == nil {
			continue
		}
		if _, err := pki.Renew(l, pki.RenewOptions{Moved: pki.NameEtcdCA, CAKey: f.signs}); err != nil {
			t.Fatalf("%s: %v", s.Stage, err)
		}
	}
}

// The files of each stage are confirmed where etcd has been restarted as the stage wants it, and not before.
func TestStagesOfEtcd(t *testing.T) {
	l := newLayout(t)
	s, key := begunEtcd(t, l)
	old, both, now := []string{s.Old}, []string{s.Old, s.New}, []string{s.New}
	for _, tt := range []struct {
		stage   castate.Stage
		accepts map[string][]string // by what etcd is like, the CAs that it accepts
		not     []string            // those that do not confirm the stage
		wants   []string            // the controllers that need a restart
	}{
		{castate.StageTrust, map[string][]string{"as before": old, "restarted": both}, nil, nil},
		{castate.StageRestart, map[string][]string{"as before": old, "restarted": both}, nil, []string{"as before"}},
		{castate.StageSign, map[string][]string{"as before": old, "restarted": both}, []string{"as before"}, []string{"as before"}},
		{castate.StageWatch, map[string][]string{"as before": old, "restarted": both}, []string{"as before"}, []string{"as before"}},
		{castate.StageDrop, map[string][]string{"as before": both, "restarted": now}, nil, []string{"as before"}},
		{castate.StageForget, map[string][]string{"as before": both, "restarted": now}, []string{"as before"}, []string{"as before"}},
	} {
		s.Stage = tt.stage
		take(t, l, s, key)
		key = nil // the directory has it
		is := readEtcd(t, l)
		for name, accepts := range tt.accepts {
			c := as(is)
			c.Accepts, c.Late = accepts, pki.SignedByOthers(l, pki.NameEtcdCA, is.Signer)
			if c.Serves = pki.Shows(l, pki.NameEtcdCA, is.Trusted); c.Serves != is.Signs() {
				t.Errorf("%s: etcd.pem is of %q, and %s signs", tt.stage, c.Serves, is.Signs())
			}
			err := Etcd.authority().confirmed(s, c)
			if (err != nil) != slices.Contains(tt.not, name) {
				t.Errorf("%s, etcd %s: got %v", tt.stage, name, err)
			}
			if got := Etcd.authority().wantsRestart(s, accepts); got != slices.Contains(tt.wants, name) {
				t.Errorf("%s, etcd %s: a restart is wanted: %v", tt.stage, name, got)
			}
		}
		if s.Waits() != slices.Contains([]castate.Stage{castate.StageRestart, castate.StageWatch, castate.StageForget}, tt.stage) {
			t.Errorf("%s waits for a person: %v", tt.stage, s.Waits())
		}
	}
	if is := readEtcd(t, l); !slices.Equal(is.IDs(), now) || is.Signs() != s.New || is.Next != nil {
		t.Errorf("at the end the files have %v, and %s signs", is.IDs(), is.Signs())
	}
	if Etcd.Stages() != 6 || castate.StageRestart.Number() != 2 || Cluster.Stages() != 5 || castate.StageForget.Number() != Etcd.Stages() {
		t.Error("the stages are not counted as the metrics have them")
	}
}

// likeEtcd is a port of etcd that accepts certificates of those CAs, and shows the controller's.
func likeEtcd(t *testing.T, l pki.Layout, cas ...*x509.Certificate) (address string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(l.Cert(pki.NameEtcd), l.Key(pki.NameEtcd))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AddCert(ca)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// A look at etcd learns which CAs it has started with, and is an error where its ports differ, or do not accept the
// controller's own certificate.
func TestLookAtEtcd(t *testing.T) {
	l := newLayout(t)
	s, key := begunEtcd(t, l)
	take(t, l, s, key)
	is := readEtcd(t, l)
	ca, err := s.CA()
	if err != nil {
		t.Fatal(err)
	}
	before, restarted := likeEtcd(t, l, is.Signer), likeEtcd(t, l, is.Signer, ca)
	for name, tt := range map[string]struct {
		ports []string
		want  []string
		said  string
	}{
		"as before":    {[]string{before, before}, []string{s.Old}, ""},
		"restarted":    {[]string{restarted, restarted}, []string{s.Old, s.New}, ""},
		"in between":   {[]string{before, restarted}, nil, "do not have the same CAs"},
		"does not fit": {[]string{likeEtcd(t, l, ca)}, nil, "does not answer"},
	} {
		r := New(Config{CA: Etcd, Name: "c0", Layout: l, Ports: func() []string { return tt.ports }})
		accepts, serves, err := r.look(t.Context(), is)
		switch {
		case tt.said == "" && (err != nil || !slices.Equal(accepts, tt.want) || serves != s.Old):
			t.Errorf("%s: got %v, shown by %q, %v", name, accepts, serves, err)
		case tt.said != "" && (err == nil || !strings.Contains(err.Error(), tt.said)):
			t.Errorf("%s: got %v, want %q", name, err, tt.said)
		}
	}
}

// A step is refused while a member refuses a certificate of the new CA, and each such member is named: by its own
// answer, or by the handshake with it.
func TestMembersReady(t *testing.T) {
	l := newLayout(t)
	s, key := begunEtcd(t, l)
	take(t, l, s, key)
	s.Stage = castate.StageRestart
	is := readEtcd(t, l)
	ca, err := s.CA()
	if err != nil {
		t.Fatal(err)
	}
	before, restarted := likeEtcd(t, l, is.Signer), likeEtcd(t, l, is.Signer, ca)
	ready, late := as(is), as(is)
	ready.Name, late.Name, late.Accepts = "c0", "c1", []string{s.Old}
	for name, tt := range map[string]struct {
		all     []Controller
		members []handshake.Verifier
		want    []string // of the error; nil for none
	}{
		"all were restarted":      {[]Controller{ready}, []handshake.Verifier{{Name: "c0", Address: restarted}}, nil},
		"its own answer":          {[]Controller{ready, late}, []handshake.Verifier{{Name: "c0", Address: restarted}, {Name: "c1", Address: before}}, []string{"c1: its etcd does not accept", "restart kthwd on c1,"}},
		"the handshake":           {[]Controller{ready}, []handshake.Verifier{{Name: "c0", Address: restarted}, {Name: "c2", Address: before}}, []string{"c2: its etcd refuses a certificate", "restart kthwd on c2,"}},
		"a member that is not up": {[]Controller{ready}, []handshake.Verifier{{Name: "c2", Error: "it is away"}}, []string{"c2 cannot be asked: it is away"}},
	} {
		r := New(Config{CA: Etcd, Name: "c0", Layout: l, Verifiers: func(context.Context) ([]handshake.Verifier, error) { return tt.members, nil }})
		for _, force := range []bool{false, true} {
			err := r.judgeSign(t.Context(), s, tt.all, force)
			if (err == nil) != (tt.want == nil) {
				t.Errorf("%s: got %v", name, err)
				continue
			}
			hint, _ := advice.Of(err)
			for _, w := range tt.want {
				if !strings.Contains(err.Error()+hint, w) {
					t.Errorf("%s: got %v, %q; want %q", name, err, hint, w)
				}
			}
		}
	}
	s.Stage = castate.StageWatch // a controller that no longer has the key shows its own certificate
	if err := os.Remove(l.EtcdCAKey()); err != nil {
		t.Fatal(err)
	}
	take(t, l, castate.State{ID: "1", Stage: castate.StageSign, Origin: "c1", Old: s.Old, New: s.New, Certificate: s.Certificate, Before: s.Before}, key)
	r := New(Config{CA: Etcd, Name: "c0", Layout: l, Verifiers: func(context.Context) ([]handshake.Verifier, error) {
		return []handshake.Verifier{{Name: "c1", Address: restarted}, {Name: "c2", Address: before}}, nil
	}})
	if err := r.judgeDrop(t.Context(), s, true); err == nil || !strings.Contains(err.Error(), "c2: its etcd refuses") || strings.Contains(err.Error(), "c1:") { // a CA may have c1 in its name
		t.Errorf("a drop: got %v", err)
	}
}
