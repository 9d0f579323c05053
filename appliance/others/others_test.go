package others

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kthwd/appliance/pki"
	"kthwd/appliance/status"
)

// authority issues certificates for the loopback address.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	return a
}

func issue(t *testing.T, template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func (a *authority) pair(cn string) tls.Certificate {
	cert, key := issue(a.t, &x509.Certificate{
		Subject: pkix.Name{CommonName: cn}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// serve answers over TLS, with a certificate of that name.
func (a *authority) serve(cn string, h http.HandlerFunc) (url string) {
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{a.pair(cn)}, ClientCAs: a.pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.StartTLS()
	a.t.Cleanup(s.Close)
	return s.URL
}

// asker is an Others with these members.
func (a *authority) asker(members ...peer) *Others {
	return &Others{
		log: slog.New(slog.DiscardHandler), known: map[uint64]status.Controller{}, told: map[uint64]time.Time{}, members: func() []peer { return members },
		connect: func() (*tls.Config, error) {
			return controllersOnly(&tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{a.pair("kubernetes")}}, pki.ControllerNames{CommonNames: []string{"kubernetes"}}), nil
		},
	}
}

func tells(state status.Controller) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != Path {
			http.NotFound(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(state)
	}
}

// What each kind of member leads to: an answer, or the reason that a person is told.
func TestAsk(t *testing.T) {
	a, foreign := newAuthority(t), newAuthority(t)
	refused := "https://" + closedPort(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	version := a.serve("kubernetes", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") })
	state := status.Controller{Name: "liar", Version: "v1", Health: status.Degraded, Ready: true, Leader: "c0"}
	for name, tt := range map[string]struct {
		peer  peer
		error string // a part of it; empty for an answer
	}{
		"answers":              {peer{clients: []string{a.serve("kubernetes", tells(state))}}, ""},
		"at its second URL":    {peer{clients: []string{refused, a.serve("kubernetes", tells(state))}}, ""},
		"dead":                 {peer{clients: []string{refused}, peers: []string{refused}}, "connection refused"},
		"silent":               {peer{clients: []string{"https://" + silent.Addr().String()}}, "no answer within 2s"},
		"without a quorum":     {peer{clients: []string{"https://" + silent.Addr().String()}, peers: []string{version}}, "waits for its first quorum"},
		"never started":        {peer{}, "has not told its address"},
		"an older kthwd":       {peer{clients: []string{a.serve("kubernetes", http.NotFound)}}, "does not pass on its state"},
		"refuses":              {peer{clients: []string{a.serve("kubernetes", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })}}, "403"},
		"a worker's machine":   {peer{clients: []string{a.serve("system:node:w1", tells(state))}}, "no controller's"},
		"of another cluster":   {peer{clients: []string{foreign.serve("kubernetes", tells(state))}}, "unknown authority"},
		"sends something else": {peer{clients: []string{a.serve("kubernetes", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") })}}, "not a controller's state"},
		"sends you elsewhere": {peer{clients: []string{a.serve("kubernetes", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, version, http.StatusFound)
		})}}, "302"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.peer.id, tt.peer.name = 1, "c1"
			o := a.asker(tt.peer)
			o.round(t.Context())
			all := o.Controllers()
			if len(all) != 1 || all[0].Name != "c1" {
				t.Fatalf("got %+v", all)
			}
			switch got := all[0]; {
			case tt.error != "" && !strings.Contains(got.Error, tt.error):
				t.Errorf("got the error %q, want %q", got.Error, tt.error)
			case tt.error == "" && (got.Error != "" || got.Health != status.Degraded || got.Leader != "c0" || got.Answered.IsZero()):
				t.Errorf("got %+v", got)
			case tt.error != "" && got.ErrorSince.IsZero():
				t.Error("it is not known since when")
			}
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The last answer stays beside the reason why there is no newer one, with the time of the
// first failure. A member that has left is forgotten.
func TestLastAnswer(t *testing.T) {
	a := newAuthority(t)
	o := a.asker()
	m := peer{id: 7, name: "c2"}
	o.note(m, status.Controller{Name: "c2", Health: status.Healthy, Version: "v1"}, nil)
	o.note(m, status.Controller{}, errors.New("gone"))
	first := o.Controllers()[0]
	o.note(m, status.Controller{}, errors.New("still gone"))
	second := o.Controllers()[0]
	if second.Version != "v1" || second.Error != "still gone" || !second.ErrorSince.Equal(first.ErrorSince) {
		t.Errorf("got %+v", second)
	}
	o.round(context.Background())
	if all := o.Controllers(); len(all) != 0 {
		t.Errorf("a member that has left: got %+v", all)
	}
}

// Only https URLs are asked, at the fixed path.
func TestSecure(t *testing.T) {
	got := secure([]string{"http://10.0.0.1:2379", "https://10.0.0.2:2379/x?y", "unix:///run/etcd.sock", "https://", "\x00"})
	if len(got) != 1 || got[0] != "https://10.0.0.2:2379" {
		t.Errorf("got %q", got)
	}
}

// A controller that cannot be asked, and asks, is known: by what it tells, for as long as it
// tells it. A state of no member is ignored.
func TestHear(t *testing.T) {
	a := newAuthority(t)
	m := peer{id: 0xc2, name: "c2", clients: []string{"https://" + closedPort(t)}}
	o := a.asker(m)
	tell := func(c status.Controller) {
		data, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		o.hear(strings.NewReader(string(data)))
	}
	tell(status.Controller{Member: "dd", Health: status.Healthy})
	o.hear(strings.NewReader("{"))
	if all := o.Controllers(); len(all) != 0 {
		t.Fatalf("a state of no member: got %+v", all)
	}
	before := time.Now().Add(-time.Second)
	tell(status.Controller{Name: "liar", Member: "c2", Leads: true, Health: status.Healthy, Peers: []status.Peer{{ID: "c2", Active: true}}})
	o.round(t.Context())
	c, known := o.View(t.Context(), m.id, false)
	if !known || c.Name != "c2" || c.Error != "" || !c.Leads || len(c.Peers) != 1 {
		t.Errorf("it cannot be asked, and has just told its state: got %+v, %v", c, known)
	}
	if got := o.Elsewhere(before); got != "c2" {
		t.Errorf("the leader of the others: got %q, want c2", got)
	}
	if got := o.Elsewhere(time.Now().Add(time.Second)); got != "" {
		t.Errorf("the leader of the others, told before the loss of the own one: got %q, want none", got)
	}
	o.told[m.id] = time.Now().Add(-time.Minute)
	o.round(t.Context())
	if _, known := o.View(t.Context(), m.id, false); known {
		t.Error("it neither answers nor tells its state: got a view")
	}
}

// Where the others have a quorum is known from its leader, or from a follower that is ready.
func TestElsewhere(t *testing.T) {
	begin := time.Now()
	answer := func(name, leader string, ready bool) status.Controller {
		return status.Controller{Name: name, Leader: leader, Leads: leader == name, Ready: ready, Answered: begin}
	}
	gone := status.Controller{Name: "c2", Leads: true, Answered: begin.Add(-time.Minute), Error: "no answer within 2s"}
	old := answer("c1", "c2", true)
	old.Answered = begin.Add(-2 * time.Second)
	for name, tt := range map[string]struct {
		known []status.Controller
		want  string
	}{
		"the leader says so":                    {[]status.Controller{answer("c1", "c2", true), answer("c2", "c2", true)}, "c2"},
		"a follower of one cut off from here":   {[]status.Controller{answer("c1", "c2", true), gone}, "c2"},
		"one that is not ready":                 {[]status.Controller{answer("c1", "c2", false), gone}, ""},
		"one without a leader":                  {[]status.Controller{answer("c1", "", true), gone}, ""},
		"one that follows this one":             {[]status.Controller{answer("c1", "c0", true), gone}, ""},
		"told before the loss":                  {[]status.Controller{old, gone}, ""},
		"the one that is named denies it":       {[]status.Controller{answer("c1", "c2", true), answer("c2", "", true)}, ""},
		"the one that is named follows another": {[]status.Controller{answer("c1", "c2", true), answer("c2", "c1", true)}, ""},
		"nobody answers":                        {[]status.Controller{gone}, ""},
	} {
		o := newAuthority(t).asker()
		for i, c := range tt.known {
			o.known[uint64(i)] = c
		}
		if got := o.Elsewhere(begin.Add(-time.Second)); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
}

// A question carries the state of the controller that asks.
func TestAskTells(t *testing.T) {
	a := newAuthority(t)
	got := make(chan status.Controller, 1)
	url := a.serve("kubernetes", func(w http.ResponseWriter, r *http.Request) {
		var c status.Controller
		_ = json.NewDecoder(r.Body).Decode(&c)
		got <- c
		_ = json.NewEncoder(w).Encode(status.Controller{Health: status.Healthy})
	})
	o := a.asker(peer{id: 1, name: "c1", clients: []string{url}})
	o.own = func() status.Controller { return status.Controller{Name: "c0", Member: "c0", Health: status.Degraded} }
	if _, ok := o.View(t.Context(), 1, true); !ok {
		t.Error("no view after a question with an answer")
	}
	if c := <-got; c.Member != "c0" || c.Health != status.Degraded {
		t.Errorf("got %+v, want the state of c0", c)
	}
}
