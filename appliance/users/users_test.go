package users

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	certificatesv1 "k8s.io/api/certificates/v1"

	"kthwd/appliance/pki"
	"kthwd/rbacseed"
	"kthwd/test/harness"
)

const soon = time.Minute

// startEtcd starts a member without clients' ports.
func startEtcd(t *testing.T) (*embed.Etcd, *clientv3.Client) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	peer := url.URL{Scheme: "http", Host: free.Addr().String()}
	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel = "c0", filepath.Join(t.TempDir(), "etcd"), "fatal"
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.ListenClientUrls, c.AdvertiseClientUrls = nil, []url.URL{peer}
	c.InitialCluster = "c0=" + peer.String()
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	client := v3client.New(server.Server)
	t.Cleanup(func() { client.Close() })
	return server, client
}

func cert(user string, serial int64, from, until time.Time) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: user}, SerialNumber: big.NewInt(serial), NotBefore: from, NotAfter: until}
}

// What is recorded is listed, what is revoked is refused, and both are deleted in the end.
func TestLedger(t *testing.T) {
	server, etcd := startEtcd(t)
	l := New(Config{Etcd: func() *embed.Etcd { return server }, Log: slog.New(slog.DiscardHandler)})
	now := time.Now()
	jane := cert("jane", 0xaaaa0001, now.Add(-time.Minute), now.Add(time.Hour))
	if err := l.Revoked.Refuses(jane); err == nil {
		t.Error("before the revocations are known: jane is accepted")
	}
	if err := l.Revoked.Refuses(cert("system:node:w0", 1, now, now)); err != nil {
		t.Errorf("a node: %v", err)
	}
	go l.Run(t.Context())
	go l.Follow(t.Context())
	wants := func(c *x509.Certificate, want bool) {
		t.Helper()
		harness.WaitFor(t, fmt.Sprintf("refusal of %s: %v", Serial(c), want), soon, func() error {
			if err := l.Revoked.Refuses(c); (err != nil) != want {
				return fmt.Errorf("got %w", err)
			}
			return nil
		})
	}
	wants(jane, false)
	old := cert("old", 0xaaaa0002, now.Add(-3*time.Hour), now.Add(-2*time.Hour))
	for _, c := range []*x509.Certificate{jane, old, cert("system:node:w0", 0xaaaa0003, now, now.Add(time.Hour))} {
		if err := l.Signed(t.Context(), RecordOf(c)); err != nil {
			t.Fatal(err)
		}
	}
	second := RecordOf(jane)
	second.AskedBy = "somebody else"
	if err := l.Signed(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	l.Seen(cert("joe", 0xaaaa0004, now, now.Add(time.Hour)))
	wantList(t, etcd, false, "jane valid, joe valid")
	wantList(t, etcd, true, "jane valid, joe valid, old expired, system:node:w0 valid")

	target, err := Find(t.Context(), etcd, "jane")
	if err != nil || target.Serial != "" || len(target.Certificates) != 1 || target.Certificates[0].AskedBy != "" {
		t.Fatalf("Find: got %+v, %v", target, err)
	}
	if err := Revoke(t.Context(), etcd, target, now.Add(10*time.Hour)); err != nil {
		t.Fatal(err)
	}
	wants(jane, true)
	from, err := Begin(t.Context(), etcd, "jane")
	if err != nil {
		t.Fatal(err)
	}
	wants(cert("jane", 0xaaaa0005, from, now.Add(time.Hour)), false)
	if target, err = Find(t.Context(), etcd, "AA:AA:00:04"); err != nil || target.Serial != "aaaa0004" || target.User != "joe" {
		t.Fatalf("Find: got %+v, %v", target, err)
	}
	if err := Revoke(t.Context(), etcd, target, now.Add(10*time.Hour)); err != nil {
		t.Fatal(err)
	}
	wants(cert("joe", 0xaaaa0004, now, now.Add(time.Hour)), true)
	wants(cert("joe", 0xaaaa0006, now, now.Add(time.Hour)), false)
	wantList(t, etcd, false, "jane revoked, joe revoked")
	for _, nobody := range []string{"old", "nobody", "bbbb0001"} {
		if _, err := Find(t.Context(), etcd, nobody); !errors.Is(err, ErrUnlisted) {
			t.Errorf("Find %s: got %v, want ErrUnlisted", nobody, err)
		}
	}
	t.Run("attempts", func(t *testing.T) { wantAttempts(t, l, jane) })
	for _, step := range []struct {
		after      time.Duration
		all        string
		janeBanned bool
	}{
		{0, "jane revoked, joe revoked, system:node:w0 valid", true},
		{3 * time.Hour, "", true}, // every certificate has ended, and the user's revocation has not
		{12 * time.Hour, "", false},
	} {
		if err := l.prune(t.Context(), now.Add(step.after)); err != nil {
			t.Fatal(err)
		}
		wantList(t, etcd, true, step.all)
		wants(jane, step.janeBanned)
	}
}

// A certificate that was seen while etcd did not run is recorded later.
func TestSeenBeforeEtcd(t *testing.T) {
	server, etcd := startEtcd(t)
	var asked atomic.Int32
	l := New(Config{Log: slog.New(slog.DiscardHandler), Etcd: func() *embed.Etcd {
		if asked.Add(1) <= 2 {
			return nil
		}
		return server
	}})
	l.Seen(cert("joe", 1, time.Now(), time.Now().Add(time.Hour)))
	go l.Run(t.Context())
	wantList(t, etcd, false, "joe valid")
}

// The clocks of two controllers differ: a revocation is about what the ledger has by then, and a
// second one accepts nothing again.
func TestRevokeAmongClocks(t *testing.T) {
	_, etcd := startEtcd(t)
	now := time.Now()
	ahead, later := cert("jane", 0xaaaa0001, now.Add(time.Minute), now.Add(time.Hour)), cert("jane", 0xaaaa0002, now.Add(time.Minute), now.Add(time.Hour))
	if err := Record(t.Context(), etcd, RecordOf(ahead)); err != nil {
		t.Fatal(err)
	}
	revoke := func(what string) {
		t.Helper()
		target, err := Find(t.Context(), etcd, what)
		if err == nil || errors.Is(err, ErrUnlisted) {
			err = Revoke(t.Context(), etcd, target, now.Add(time.Hour))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	refuses := func(c *x509.Certificate, want bool) {
		t.Helper()
		r, err := readRevocations(t.Context(), etcd)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.judge(c); (got != nil) != want {
			t.Errorf("%s of %s: got %v, want a refusal: %v", Serial(c), c.Subject.CommonName, got, want)
		}
	}
	revoke("jane")
	refuses(ahead, true)
	refuses(later, false)
	by := map[string]revocation{usersPrefix + "jane": {At: now.Add(2 * time.Minute), Until: now.Add(time.Hour)}}
	if err := put(t.Context(), etcd, by); err != nil {
		t.Fatal(err)
	}
	revoke("jane")
	refuses(later, true)
	// A name that could be a serial number, and nobody knows it.
	revoke("20260117")
	refuses(cert("20260117", 3, now, now), true)
	refuses(cert("joe", 0x20260117, now, now), true)
	refuses(cert("joe", 3, now, now), false)
}

// A node has as many records as are of use, however many certificates it asks for.
func TestOldRecords(t *testing.T) {
	now := time.Now()
	all := map[string]Certificate{}
	add := func(user string, n int, until time.Time) {
		for i := range n {
			serial := fmt.Sprintf("%s-%d", user, i)
			all[serial] = Certificate{Serial: serial, User: user, NotAfter: until, At: now.Add(time.Duration(i) * time.Second)}
		}
	}
	add("system:node:w0", keptOfNode+2, now.Add(time.Hour))
	add("system:node:w1", keptOfNode, now.Add(time.Hour))
	add("jane", keptOfNode+2, now.Add(time.Hour))
	add("old", 1, now.Add(-2*time.Hour))
	want := []string{ledgerPrefix + "old-0", ledgerPrefix + "system:node:w0-0", ledgerPrefix + "system:node:w0-1"}
	if got := oldRecords(all, now); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// wantAttempts: a revoked certificate that comes again is a finding, and no other refusal is.
func wantAttempts(t *testing.T, l *Ledger, jane *x509.Certificate) {
	l.Tried(jane, "10.0.0.9:1234", errors.New("the node was removed"))
	if found := l.Findings(); len(found) != 0 {
		t.Errorf("got %+v, want none", found)
	}
	for range 3 {
		l.Tried(jane, "10.0.0.9:1234", l.Revoked.Refuses(jane))
	}
	found := l.Findings()
	if len(found) != 1 || !strings.Contains(found[0].Text, "a client at 10.0.0.9 uses the revoked certificate aaaa0001 of jane; requests refused: 3") {
		t.Errorf("got %+v", found)
	}
}

func wantList(t *testing.T, etcd *clientv3.Client, all bool, want string) {
	t.Helper()
	harness.WaitFor(t, "the list "+want, soon, func() error {
		list, err := List(t.Context(), etcd, all)
		if err != nil {
			return err
		}
		var got []string
		for _, e := range list {
			got = append(got, e.User+" "+string(e.State))
		}
		if strings.Join(got, ", ") != want {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
}

// A record that cannot be read refuses: somebody has made it to refuse.
func TestUnreadableRevocation(t *testing.T) {
	now := time.Now()
	judge := parseRevocations(map[string][]byte{"user/jane": []byte("?"), "serial/aaaa0001": []byte("{}")}).judge
	for c, want := range map[*x509.Certificate]bool{
		cert("jane", 2, now, now): true, cert("joe", 0xaaaa0001, now, now): true, cert("joe", 2, now, now): false,
	} {
		if err := judge(c); (err != nil) != want {
			t.Errorf("%s of %s: got %v, want a refusal: %v", Serial(c), c.Subject.CommonName, err, want)
		}
	}
}

func TestRevocable(t *testing.T) {
	for user, want := range map[string]bool{
		"jane": true, "admin": true, "super-admin": true, "worker-0": true, "system:kube-proxy": true, "system:nodes": true,
		"system:node:w0": false, "system:kube-scheduler": false, "kubernetes": false, "kthwd-health": false,
	} {
		if err := Revocable(user); (err == nil) != want {
			t.Errorf("%s: got %v, want it to be revocable: %v", user, err, want)
		}
	}
}

// A load balancer gets the next certificate only for its own name and groups, with a certificate
// that is in the ledger, valid and not revoked, and for no longer life.
func TestMayRenew(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	groups := []string{rbacseed.BalancerGroup, "others"}
	held := Certificate{Serial: "1", User: "lb", Groups: groups, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(23 * time.Hour), Credential: "X"}
	for name, tt := range map[string]struct {
		change  func(*Renewal, *Certificate)
		revoked revocations
		want    string
	}{
		"as it is": {},
		"groups in any order": {change: func(r *Renewal, _ *Certificate) {
			r.Contents.Subject.Organization = []string{"others", rbacseed.BalancerGroup}
		}},
		"revoked by number":     {revoked: revocations{serials: map[string]revocation{"1": {At: now}}}, want: "is revoked"},
		"revoked by name":       {revoked: revocations{users: map[string]revocation{"lb": {At: now}}}, want: "is revoked"},
		"begun just after one":  {change: func(r *Renewal, c *Certificate) { c.NotBefore, r.Life = now, 23*time.Hour }, revoked: revocations{users: map[string]revocation{"lb": {At: now.Add(-time.Minute)}}}, want: "ask after"},
		"begun long after one":  {change: func(r *Renewal, c *Certificate) { c.NotBefore, r.Life = now.Add(-time.Minute), 23*time.Hour }, revoked: revocations{users: map[string]revocation{"lb": {At: now.Add(-time.Hour)}}}},
		"expired":               {change: func(_ *Renewal, c *Certificate) { c.NotAfter = now.Add(-time.Second) }, want: "has expired"},
		"somebody else's":       {change: func(_ *Renewal, c *Certificate) { c.User = "other" }, want: "is not that of the load balancer"},
		"not in the group":      {change: func(_ *Renewal, c *Certificate) { c.Groups = []string{"others"} }, want: "is not that of the load balancer"},
		"without a certificate": {change: func(r *Renewal, _ *Certificate) { r.Credential = "" }, want: "has not come with a certificate"},
		"a group less":          {change: func(_ *Renewal, c *Certificate) { c.Groups = append(slices.Clone(groups), "third") }, want: "asks for the groups"},
		"a second more":         {change: func(r *Renewal, _ *Certificate) { r.Life += time.Second }, want: "lasts 24h0m0s at most"},
		"a P-384 key": {change: func(r *Renewal, _ *Certificate) {
			other, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			r.Contents.PublicKey = &other.PublicKey
		}, want: "ECDSA P-256"},
	} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "lb", Organization: groups}}, key)
		if err != nil {
			t.Fatal(err)
		}
		contents, err := x509.ParseCertificateRequest(der)
		if err != nil {
			t.Fatal(err)
		}
		r := Renewal{User: "lb", Groups: groups, Credential: "X", Signer: certificatesv1.KubeAPIServerClientSignerName, Usages: []string{"client auth", "digital signature"}, Life: 24 * time.Hour, Contents: contents}
		c := held
		if tt.change != nil {
			tt.change(&r, &c)
		}
		if err = r.check(); err == nil {
			err = r.checkAgainst(c, tt.revoked, now)
		}
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	for life, want := range map[time.Duration]time.Duration{time.Minute: 10 * time.Minute, 15 * time.Minute: 10 * time.Minute, 720*time.Hour + 5*time.Minute: 720 * time.Hour, 8760 * time.Hour: 2160 * time.Hour} {
		if got := pki.RenewedLife(now, now.Add(life)); got != want {
			t.Errorf("after %v: got %v, want %v", life, got, want)
		}
	}
}
