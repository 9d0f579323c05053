package names

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"kthwd/test/dnstest"
	"kthwd/test/harness"
)

const patience = time.Minute

// rig is a Name that is followed, and its DNS server.
type rig struct {
	*Name
	t   *testing.T
	dns *dnstest.Server
}

// follow follows api.test:6443, or what change makes of it, after the server was prepared.
func follow(t *testing.T, prepare func(*dnstest.Server), change func(*Config)) *rig {
	t.Helper()
	dns := dnstest.Start(t)
	prepare(dns)
	c := Config{Host: "api.test", Port: 6443, Slow: 20 * time.Millisecond, Fast: 20 * time.Millisecond, Resolver: dns.Resolver()}
	if change != nil {
		change(&c)
	}
	r := &rig{New(c), t, dns}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return r
}

// has waits until the servers are those, in this order.
func (r *rig) has(want ...string) Status {
	r.t.Helper()
	var s Status
	harness.WaitFor(r.t, "the servers", patience, func() error {
		s = r.Status()
		var got []string
		for _, server := range s.Servers {
			got = append(got, server.Address.String())
		}
		if !s.Answered || !slices.Equal(got, want) {
			return fmt.Errorf("got %v, want %v (%s)", got, want, s.Problem)
		}
		return nil
	})
	return s
}

func (r *rig) problem(want string) Status {
	r.t.Helper()
	var s Status
	harness.WaitFor(r.t, "the problem", patience, func() error {
		if s = r.Status(); !s.Answered || want == "" && s.Problem != "" || !strings.Contains(s.Problem, want) {
			return fmt.Errorf("got %q, want %q", s.Problem, want)
		}
		return nil
	})
	return s
}

// again waits until the name was looked up twice more.
func (r *rig) again() {
	r.t.Helper()
	before := r.dns.Queries()
	harness.WaitFor(r.t, "two more look-ups", patience, func() error {
		if n := r.dns.Queries() - before; n < 6 { // the first ones may have begun before
			return fmt.Errorf("%d questions", n)
		}
		return nil
	})
}

func TestEveryAddress(t *testing.T) {
	r := follow(t, func(d *dnstest.Server) { d.Set("api.test", "127.0.0.13", "127.0.0.11", "127.0.0.12") }, nil)
	r.has("127.0.0.11:6443", "127.0.0.12:6443", "127.0.0.13:6443")
	r.dns.Set("api.test", "127.0.0.12", "127.0.0.14") // with records of an hour
	r.has("127.0.0.12:6443", "127.0.0.14:6443")
}

// The families take turns, so that the second attempt is of the other one.
func TestHappyEyeballsOrder(t *testing.T) {
	var all []Server
	for _, a := range []string{"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "[fd00::1]:1", "[fd00::2]:1"} {
		all = append(all, Server{Address: netip.MustParseAddrPort(a)})
	}
	var got []string
	for _, s := range byTurns(all) {
		got = append(got, s.Address.String())
	}
	if want := []string{"[fd00::1]:1", "10.0.0.1:1", "[fd00::2]:1", "10.0.0.2:1", "10.0.0.3:1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Whatever the resolver fails to say, nothing changes.
func TestFailureChangesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		fail    func(*dnstest.Server)
		problem string
	}{
		"no answer":        {func(d *dnstest.Server) { d.Fail(true, dnsmessage.TypeA, dnsmessage.TypeAAAA) }, "server misbehaving"},
		"one family fails": {func(d *dnstest.Server) { d.Fail(true, dnsmessage.TypeA); d.Set("api.test", "127.0.0.11", "::1") }, "server misbehaving"},
		"no such name":     {func(d *dnstest.Server) { d.Set("api.test") }, "no such host"},
	} {
		t.Run(name, func(t *testing.T) {
			r := follow(t, func(d *dnstest.Server) { d.Set("api.test", "127.0.0.11", "127.0.0.12") }, nil)
			r.has("127.0.0.11:6443", "127.0.0.12:6443")
			tt.fail(r.dns)
			r.problem(tt.problem)
			r.again()
			for _, want := range []string{"127.0.0.11:6443", "127.0.0.12:6443"} {
				if s := r.Status(); !has(s.Servers, netip.MustParseAddrPort(want)) {
					t.Errorf("%s is gone: %v", want, s.Servers)
				}
			}
			r.dns.Fail(false, dnsmessage.TypeA, dnsmessage.TypeAAAA)
			r.dns.Set("api.test", "127.0.0.12")
			r.has("127.0.0.12:6443")
			r.problem("") // the reason ends with its cause
		})
	}
}

func TestNoVerdictBeforeAnAnswer(t *testing.T) {
	t.Parallel() // the resolver repeats a question after seconds
	r := follow(t, func(d *dnstest.Server) { d.Silence(true) }, nil)
	harness.WaitFor(t, "a question", patience, func() error {
		if r.dns.Queries() == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	if s := r.Status(); s.Answered || s.Problem != "" {
		t.Errorf("before the first answer: %+v", s)
	}
	r.dns.Set("api.test", "127.0.0.11")
	r.dns.Silence(false)
	r.has("127.0.0.11:6443")
}

// With a first server that says nothing, the second one is asked and answers.
func TestSecondServer(t *testing.T) {
	t.Parallel() // the resolver waits for the first one for seconds
	dead, good := dnstest.Start(t), dnstest.Start(t)
	dead.Silence(true)
	good.Set("api.test", "127.0.0.11")
	if limitOf(resolvConf) < 2*leastLimit {
		t.Skip("this machine's resolver tries once only")
	}
	var tries atomic.Int64
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if tries.Add(1) <= 2 { // one question for each family
			return dead.Resolver().Dial(ctx, network, address)
		}
		return good.Resolver().Dial(ctx, network, address)
	}}
	n := New(Config{Host: "api.test", Port: 6443, Slow: time.Hour, Fast: time.Hour, Resolver: r})
	n.once(t.Context())
	if s := n.Status(); len(s.Servers) != 1 || dead.Queries() == 0 {
		t.Errorf("the first server was asked %d times: got %+v", dead.Queries(), s)
	}
}

func TestLimit(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"nameserver 10.0.0.1\nnameserver fd00::1\n": 20 * time.Second,
		"nameserver 10.0.0.1\n":                     10 * time.Second,
		"":                                          20 * time.Second,
		"nameserver a\n# nameserver 10.0.0.1\n; options timeout:1\nsearch example.com":                      20 * time.Second,
		"nameserver 10.0.0.1\noptions ndots:5 timeout:2 attempts:3 rotate":                                  6 * time.Second,
		"nameserver 10.0.0.1\noptions timeout:0 attempts:x":                                                 2 * time.Second,
		"nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\noptions edns0": 30 * time.Second,
	} {
		if got := limitIn(text); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
	if got := limitOf(filepath.Join(t.TempDir(), "none")); got != 20*time.Second {
		t.Errorf("no file: got %v", got)
	}
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for text, want := range map[string]time.Duration{
		"nameserver 10.0.0.1\noptions timeout:1 attempts:1":                       leastLimit,
		"nameserver 10.0.0.1\nnameserver 10.0.0.2\noptions timeout:30 attempts:5": mostLimit,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := limitOf(file); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

// A server that says nothing to questions of one family does not hold up the other one: its
// look-ups go on while the question is open.
func TestOneFamilyIsSilent(t *testing.T) {
	r := follow(t, func(d *dnstest.Server) {
		d.Silence(true, dnsmessage.TypeAAAA)
		d.Set("api.test", "127.0.0.11")
	}, nil)
	r.has("127.0.0.11:6443")
	r.problem("")
	harness.WaitFor(t, "more questions for A than for AAAA", patience, func() error {
		if a, aaaa := r.dns.Queries(dnsmessage.TypeA), r.dns.Queries(dnsmessage.TypeAAAA); a < aaaa+5 {
			return fmt.Errorf("%d for A, %d for AAAA", a, aaaa)
		}
		return nil
	})
	r.dns.Set("api.test", "127.0.0.12")
	r.has("127.0.0.12:6443")
}

// A family that never answers is no problem while the other one does, and needs no haste.
func TestFamilyThatNeverAnswers(t *testing.T) {
	dns := dnstest.Start(t)
	dns.Silence(true, dnsmessage.TypeAAAA)
	dns.Set("api.test", "127.0.0.11")
	n := New(Config{Host: "api.test", Port: 6443, Slow: time.Hour, Fast: time.Hour, Limit: 300 * time.Millisecond, Resolver: dns.Resolver()})
	for range 3 {
		n.once(t.Context())
		n.asking.Wait() // until the limit
		if s := n.Status(); len(s.Servers) != 1 || s.Problem != "" || n.troubled() {
			t.Errorf("got %+v, troubled %v", s, n.troubled())
		}
	}
	dns.Silence(true)
	n.once(t.Context())
	if s := n.Status(); len(s.Servers) != 1 || s.Problem == "" || !n.troubled() {
		t.Errorf("with both silent: got %+v, troubled %v", s, n.troubled())
	}
}

// What is known of a family stays while that is silent, which is said, and ends with an answer.
func TestSilentFamilyKeepsItsAddresses(t *testing.T) {
	r := follow(t, func(d *dnstest.Server) { d.Set("api.test", "127.0.0.11", "::1") }, func(c *Config) { c.Limit = 300 * time.Millisecond })
	r.has("[::1]:6443", "127.0.0.11:6443")
	r.dns.Silence(true, dnsmessage.TypeAAAA)
	r.dns.Set("api.test", "127.0.0.12")
	r.has("[::1]:6443", "127.0.0.12:6443")
	r.problem("timeout")
	r.dns.Silence(false, dnsmessage.TypeAAAA)
	r.has("127.0.0.12:6443")
	r.problem("")
}

// That problem lasts, so it calls for no haste.
func TestSilentFamilyNeedsNoHaste(t *testing.T) {
	dns := dnstest.Start(t)
	dns.Set("api.test", "127.0.0.11", "::1")
	n := New(Config{Host: "api.test", Port: 6443, Slow: time.Hour, Fast: time.Hour, Limit: 300 * time.Millisecond, Resolver: dns.Resolver()})
	n.once(t.Context())
	dns.Silence(true, dnsmessage.TypeAAAA)
	for range 2 {
		n.once(t.Context())
		n.asking.Wait() // until the limit
	}
	if s := n.Status(); len(s.Servers) != 2 || s.Problem == "" || n.troubled() {
		t.Errorf("got %+v, troubled %v", s, n.troubled())
	}
}

// An answer that comes after its look-up has ended counts, without a wait for the next one.
func TestLateFamily(t *testing.T) {
	t.Parallel() // the resolver repeats a question after seconds
	r := follow(t, func(d *dnstest.Server) {
		d.Silence(true, dnsmessage.TypeAAAA)
		d.Set("api.test", "127.0.0.11", "::1")
	}, func(c *Config) { c.Slow = time.Hour })
	r.has("127.0.0.11:6443")
	r.dns.Silence(false, dnsmessage.TypeAAAA) // the resolver repeats its question
	r.has("[::1]:6443", "127.0.0.11:6443")
}

func TestTooManyAddresses(t *testing.T) {
	var all []string
	for i := range 500 {
		all = append(all, fmt.Sprintf("127.1.%d.%d", i/250, i%250+1))
	}
	r := follow(t, func(d *dnstest.Server) { d.Set("api.test", all[100:]...) }, nil)
	r.problem("400 addresses, and the first 64 are used")
	before := r.Status().Servers
	r.dns.Set("api.test", all...)
	s := r.problem("500 addresses")
	if !slices.Equal(s.Servers, before) || len(before) != Most {
		t.Errorf("the addresses in use have changed: %d before, %d after", len(before), len(s.Servers))
	}
}

func TestRefusedAddress(t *testing.T) {
	ours := netip.MustParseAddrPort("127.0.0.12:6443")
	r := follow(t, func(d *dnstest.Server) { d.Set("api.test", "127.0.0.11", "127.0.0.12") }, func(c *Config) {
		c.Refuse = func(a netip.AddrPort) error {
			if a == ours {
				return fmt.Errorf("which is this machine")
			}
			return nil
		}
	})
	r.has("127.0.0.11:6443")
	r.problem("api.test is 127.0.0.12:6443, which is this machine")
	r.dns.Set("api.test", "127.0.0.12")
	r.has()
}

func TestServices(t *testing.T) {
	const service = "_https._tcp.api.test"
	r := follow(t, func(d *dnstest.Server) {
		d.Set("a.test", "127.0.0.11", "127.0.0.12")
		d.Set("b.test", "127.0.0.13")
		d.SetSRV(service, net.SRV{Target: "b.test.", Port: 7443, Priority: 20, Weight: 1}, net.SRV{Target: "a.test.", Port: 6443, Priority: 10, Weight: 30})
	}, func(c *Config) { c.Host, c.Port = service, 0 })
	s := r.has("127.0.0.11:6443", "127.0.0.12:6443", "127.0.0.13:7443")
	want := []Server{
		{netip.MustParseAddrPort("127.0.0.11:6443"), 30, false},
		{netip.MustParseAddrPort("127.0.0.12:6443"), 30, false},
		{netip.MustParseAddrPort("127.0.0.13:7443"), 1, true},
	}
	if !slices.Equal(s.Servers, want) {
		t.Errorf("got %v, want %v", s.Servers, want)
	}
	r.dns.Set("a.test") // a server whose own name fails keeps its addresses
	r.problem("a.test")
	r.has("127.0.0.11:6443", "127.0.0.12:6443", "127.0.0.13:7443")
	r.dns.SetSRV(service, net.SRV{Target: "b.test.", Port: 7443, Priority: 20, Weight: 60000})
	if s := r.has("127.0.0.13:7443"); s.Servers[0].Backup || s.Servers[0].Weight != maxWeight {
		t.Errorf("got %v", s.Servers)
	}
}

// A name whose servers are well is looked up at leisure; as soon as one is not, in haste.
func TestHaste(t *testing.T) {
	var settled atomic.Bool
	settled.Store(true)
	r := follow(t, func(d *dnstest.Server) { d.Set("api.test", "127.0.0.11") }, func(c *Config) {
		c.Slow, c.Settled = time.Hour, settled.Load
	})
	r.has("127.0.0.11:6443")
	r.dns.Set("api.test", "127.0.0.12")
	r.Hurry() // without a need
	settled.Store(false)
	r.Hurry()
	r.has("127.0.0.12:6443")
}
