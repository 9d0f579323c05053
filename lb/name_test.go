package lb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"kthwd/lb/check"
	"kthwd/test/dnstest"
)

// apiServersOf returns API servers at some loopback addresses, all at one port.
func apiServersOf(t *testing.T, addresses ...string) (port string, all []*apiServer) {
	t.Helper()
	return apiServersAt(t, "", addresses...)
}

func apiServersAt(t *testing.T, port string, addresses ...string) (string, []*apiServer) {
	t.Helper()
	var all []*apiServer
	for _, address := range addresses {
		a := &apiServer{t: t, addr: net.JoinHostPort(address, "0"), resumed: make(chan bool)}
		if port != "" {
			a.addr = net.JoinHostPort(address, port)
		}
		close(a.resumed)
		a.status.Store(200)
		a.start()
		t.Cleanup(func() { a.resume(); a.kill() })
		_, port, _ = net.SplitHostPort(a.addr)
		all = append(all, a)
	}
	return port, all
}

// namedConfig is checkedConfig for one name.
func namedConfig(backends ...string) Config {
	c := checkedConfig()
	c.Backends, c.Balance = backends, RoundRobin
	return c
}

// addresses waits until the backends in use are those.
func (r *rig) addresses(want ...string) {
	r.t.Helper()
	eventually(r.t, "the backends in use", func() error {
		var got []string
		for _, b := range r.Status().Backends {
			if b.State != stateDraining {
				got = append(got, b.Address)
			}
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	})
}

// Each address of a name is a backend: when one dies, its clients go to the others.
func TestNameWithThreeAddresses(t *testing.T) {
	watchLeaks(t)
	port, servers := apiServersOf(t, "127.0.0.11", "127.0.0.12", "127.0.0.13")
	dns := dnstest.Start(t)
	dns.Set("api.test", "127.0.0.11", "127.0.0.12", "127.0.0.13")
	r := run(t, namedConfig("API.test.:"+port), Options{resolver: dns.Resolver()})
	for _, a := range servers {
		r.awaitTier(a, tierReady)
	}
	seen := map[string]bool{}
	for range 9 {
		who, err := r.visit().who()
		must(t, err)
		seen[who] = true
	}
	must(t, equal("servers that were used", len(seen), 3))
	for _, b := range r.Status().Backends {
		must(t, equal("name of "+b.Address, b.Name, "api.test:"+port))
	}
	servers[0].kill()
	for i := range 30 {
		if _, err := r.visit().who(); err != nil {
			t.Fatalf("client %d after one has died: %v", i, err)
		}
	}
	r.awaitState(servers[0], check.Dead)

	// It comes back with another address: followed long before resolveEvery.
	_, moved := apiServersAt(t, port, "127.0.0.14")
	dns.Set("api.test", "127.0.0.12", "127.0.0.13", "127.0.0.14")
	r.addresses("127.0.0.12:"+port, "127.0.0.13:"+port, "127.0.0.14:"+port)
	r.awaitTier(moved[0], tierReady)
}

// An address that vanishes from DNS gets no new clients, and keeps those it has, for
// longer than the drain time. When it dies they are cut.
func TestVanishedAddressDrains(t *testing.T) {
	watchLeaks(t)
	port, servers := apiServersOf(t, "127.0.0.11", "127.0.0.12")
	dns := dnstest.Start(t)
	dns.Set("api.test", "127.0.0.11")
	cfg := namedConfig("api.test:" + port)
	cfg.DrainTimeout = 50 * time.Millisecond
	r := run(t, cfg, Options{resolver: dns.Resolver()})
	r.awaitTier(servers[0], tierReady)
	v := r.visit()
	v.at(t, servers[0])
	dns.Set("api.test", "127.0.0.12")
	r.fast(t)
	r.addresses("127.0.0.12:" + port)
	r.awaitTier(servers[1], tierReady)
	eventually(t, "well beyond the drain time", func() error {
		for _, b := range r.Status().Backends {
			if b.State == stateDraining && time.Since(r.begun) > 1500*time.Millisecond {
				return nil
			}
		}
		return errors.New("not yet")
	})
	v.at(t, servers[0])
	r.visit().at(t, servers[1])
	servers[0].refuse() // dead, but for its connections
	v.cut(t)
	eventually(t, "it is forgotten", func() error { return equal("backends", len(r.allBackends()), 1) })
}

// fast has all names looked up now, as if a server were not ready.
func (r *rig) fast(t *testing.T) {
	t.Helper()
	for _, b := range r.allBackends() {
		b.suspect("for a test")
		r.hurryNames(b)
	}
}

// A resolver that fails changes nothing for clients, and is said.
func TestResolverFails(t *testing.T) {
	watchLeaks(t)
	port, servers := apiServersOf(t, "127.0.0.11", "127.0.0.12")
	dns := dnstest.Start(t)
	dns.Set("api.test", "127.0.0.11", "127.0.0.12")
	r := run(t, namedConfig("api.test:"+port), Options{resolver: dns.Resolver()})
	r.awaitTier(servers[0], tierReady)
	dns.Fail(true, dnsmessage.TypeA, dnsmessage.TypeAAAA)
	r.fast(t)
	eventually(t, "the problem is shown", func() error {
		if n := r.Status().Names[0]; n.Problem == "" || n.Addresses != 2 {
			return fmt.Errorf("got %+v", n)
		}
		return nil
	})
	r.addresses("127.0.0.11:"+port, "127.0.0.12:"+port)
	dns.Fail(false, dnsmessage.TypeA, dnsmessage.TypeAAAA)
	eventually(t, "the problem is over", func() error { return equal("problem", r.Status().Names[0].Problem, "") })
}

// Nothing is said of a name before its first answer, and clients wait for that.
func TestNameWithoutAnswer(t *testing.T) {
	watchLeaks(t)
	port, servers := apiServersOf(t, "127.0.0.11")
	dns := dnstest.Start(t)
	dns.Silence(true)
	cfg := namedConfig("api.test:" + port)
	cfg.CheckTimeout = 250 * time.Millisecond // run waits as long for the first answer
	r := run(t, cfg, Options{resolver: dns.Resolver()})
	b := r.Status().Backends[0]
	must(t, equal("state", b.State, "unknown"), equal("address", b.Address, "api.test:"+port))
	who := make(chan error, 1)
	v := r.visit()
	go func() { _, err := v.who(); who <- err }()
	eventually(t, "the client is held", func() error { return equal("held", r.Status().Held, 1) })
	dns.Set("api.test", "127.0.0.11")
	dns.Silence(false)
	must(t, receive(t, "the answer for a held client", who))
	r.awaitTier(servers[0], tierReady)
}

// A name is resolved once its addresses are backends: a balancer that is ready has some.
func TestResolvedOnceInThePool(t *testing.T) {
	watchLeaks(t)
	dns := dnstest.Start(t)
	dns.Silence(true)
	s, err := New(namedConfig("api.test:7443"), Options{resolver: dns.Resolver()})
	must(t, err)
	defer s.stopBackends()
	func() {
		s.mu.Lock() // nothing gets into the pool
		defer s.mu.Unlock()
		dns.Set("api.test", "127.0.0.11")
		dns.Silence(false)
		eventually(t, "the answer", func() error { return equal("answered", s.followed()[0].Status().Answered, true) })
		must(t, equal("resolved", s.resolved(), false))
	}()
	eventually(t, "the backend", func() error { return equal("resolved", s.resolved(), true) })
	must(t, equal("backends", len(s.pool.Load().backends), 1))
}

func TestNameThatDoesNotExist(t *testing.T) {
	dns := dnstest.Start(t)
	r := begin(t, namedConfig("nobody.test:6443", unused(t)), Options{resolver: dns.Resolver()})
	eventually(t, "the reason in status", func() error {
		all := r.Status().Backends
		b := all[len(all)-1]
		if b.State != stateUnresolved || !strings.Contains(b.Reason, "nobody.test") || !strings.Contains(b.Reason, "no such host") {
			return fmt.Errorf("got %+v", b)
		}
		return nil
	})
	must(t, equal("backends in the pool", len(r.pool.Load().backends), 1))
}

// One server with two names and an address is one backend, and the balancer is none.
func TestSameServerCountsOnce(t *testing.T) {
	watchLeaks(t)
	port, servers := apiServersOf(t, "127.0.0.11")
	f, own := socket(t, "127.0.0.9:"+port)
	dns := dnstest.Start(t)
	dns.Set("api.test", "127.0.0.11", "127.0.0.9")
	dns.Set("other.test", "127.0.0.11")
	cfg := namedConfig("api.test:"+port, servers[0].addr, "other.test:"+port)
	cfg.Listen = []string{own}
	r := run(t, cfg, Options{Sockets: []*os.File{f}, resolver: dns.Resolver()})
	r.addresses(servers[0].addr)
	eventually(t, "the balancer itself is refused", func() error {
		if p := r.Status().Names[0].Problem; !strings.Contains(p, "127.0.0.9:"+port+", which is this load balancer itself") {
			return errors.New(p)
		}
		return nil
	})
	r.visit().at(t, servers[0])
}

// An address that no backend can have is left out, and said. A connection to 0.0.0.0 would
// reach the balancer itself.
func TestNameWithImpossibleAddresses(t *testing.T) {
	watchLeaks(t)
	port, servers := apiServersOf(t, "127.0.0.11")
	f, own := socket(t, "127.0.0.1:"+port)
	dns := dnstest.Start(t)
	impossible := []string{"0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"}
	dns.Set("api.test", append(impossible, "127.0.0.11", "::ffff:0.0.0.0")...)
	cfg := namedConfig("api.test:" + port)
	cfg.Listen = []string{own}
	r := run(t, cfg, Options{Sockets: []*os.File{f}, resolver: dns.Resolver()})
	r.addresses(servers[0].addr)
	problem := r.Status().Names[0].Problem
	for _, a := range impossible {
		if want := "api.test is " + net.JoinHostPort(a, port) + ", which is not an address that can be connected to"; !strings.Contains(problem, want) {
			t.Errorf("got %q, want %q", problem, want)
		}
	}
	r.visit().at(t, servers[0])
	dns.Set("api.test", "::ffff:0.0.0.0", "::")
	r.fast(t)
	eventually(t, "no backend is left", func() error { return equal("addresses", r.Status().Names[0].Addresses, 0) })
}

// A connection to an unspecified address reaches the loopback one.
func TestOwnListenerUnspecified(t *testing.T) {
	for _, tt := range []struct {
		listen, backend string
		own             bool
	}{
		{":6443", "0.0.0.0:6443", true},
		{":6443", "[::]:6443", true},
		{"0.0.0.0:6443", "[::ffff:0.0.0.0]:6443", true},
		{"127.0.0.1:6443", "0.0.0.0:6443", true},
		{"[::1]:6443", "[::]:6443", true},
		{"0.0.0.0:6443", "[::]:6443", false},
		{"10.9.9.9:6443", "0.0.0.0:6443", false},
		{":6443", "0.0.0.0:443", false},
	} {
		if got := ownListener([]string{tt.listen}, tt.backend) != ""; got != tt.own {
			t.Errorf("%s, listening on %s: got %v, want %v", tt.backend, tt.listen, got, tt.own)
		}
	}
}

func TestServiceRecords(t *testing.T) {
	watchLeaks(t)
	_, servers := apiServersOf(t, "127.0.0.11", "127.0.0.12")
	n := netip.MustParseAddrPort(servers[0].addr).Port()
	dns := dnstest.Start(t)
	dns.Set("a.test", "127.0.0.11")
	dns.Set("b.test", "127.0.0.12")
	dns.SetSRV("_https._tcp.api.test", net.SRV{Target: "a.test.", Port: n, Priority: 1, Weight: 5}, net.SRV{Target: "b.test.", Port: n, Priority: 2, Weight: 5})
	r := run(t, namedConfig("_https._tcp.api.test"), Options{resolver: dns.Resolver()})
	r.awaitTier(servers[0], tierReady)
	r.awaitTier(servers[1], tierReady)
	for range 4 {
		r.visit().at(t, servers[0])
	}
	must(t, equal("use of the second", r.Status().Backends[1].Use, "backup"))
	servers[0].kill()
	r.awaitState(servers[0], check.Dead)
	r.visit().at(t, servers[1])
}

// A discovered address that cannot be reached replaces nothing, and one that answers does.
func TestDiscoveryProvesFirst(t *testing.T) {
	for _, mode := range []string{CheckHTTPS, CheckNone} {
		t.Run(mode, func(t *testing.T) {
			watchLeaks(t)
			configured, found := newAPIServer(t), newAPIServer(t)
			cfg := checkedConfig(configured)
			cfg.Check, cfg.Balance = mode, RoundRobin
			cfg.ConnectTimeout, cfg.HedgeAfter = 200*time.Millisecond, 50*time.Millisecond
			r := run(t, cfg, Options{})
			must(t, r.SetDiscovered([]string{unused(t), blackHole(t)}))
			for range 10 {
				r.visit().at(t, configured)
			}
			must(t, equal("use", r.Status().Backends[2].Use, "last resort"))
			v := r.visit()
			v.at(t, configured)
			must(t, r.SetDiscovered([]string{found.addr}))
			eventually(t, "new clients go to the one found", func() error {
				who, err := r.visit().who()
				return errors.Join(err, equal("backend", who, found.addr))
			})
			for range 5 {
				r.visit().at(t, found)
			}
			v.at(t, configured) // nothing is cut
			found.kill()
			eventually(t, "the last resort", func() error {
				who, err := r.visit().who()
				return errors.Join(err, equal("backend", who, configured.addr))
			})
		})
	}
}

func TestWeightsAndBackup(t *testing.T) {
	watchLeaks(t)
	heavy, light, none, backup := newAPIServer(t), newAPIServer(t), newAPIServer(t), newAPIServer(t)
	cfg := checkedConfig()
	cfg.Balance = RoundRobin
	cfg.Backends = []string{heavy.addr + " weight 3", light.addr + " weight=1", none.addr + " weight 0", backup.addr + " backup"}
	r := run(t, cfg, Options{})
	for _, a := range []*apiServer{heavy, light, none, backup} {
		r.awaitTier(a, tierReady)
	}
	got := map[string]int{}
	for range 12 {
		who, err := r.visit().who()
		must(t, err)
		got[who]++
	}
	must(t, equal("of weight 3", got[heavy.addr], 9), equal("of weight 1", got[light.addr], 3))
	heavy.kill()
	light.kill()
	r.awaitState(heavy, check.Dead)
	r.awaitState(light, check.Dead)
	for range 3 {
		r.visit().at(t, backup)
	}
	st := r.Status().Backends
	must(t, equal("use", st[3].Use, "backup"), equal("weight", *st[0].Weight, 3), equal("weight", *st[2].Weight, 0))
}

func TestParseSpec(t *testing.T) {
	for in, want := range map[string]spec{
		"10.0.0.1:6443":                           {"10.0.0.1", 6443, 1, false},
		"[::ffff:10.0.0.1]:6443 backup":           {"10.0.0.1", 6443, 1, true},
		"API.example.com.:6443 weight 10":         {"api.example.com", 6443, 10, false},
		"  a:1   backup   weight=256 ":            {"a", 1, 256, true},
		"_https._tcp.api.example.com weight 0":    {"_https._tcp.api.example.com", 0, 0, false},
		"[fe80::1%eth0]:6443":                     {"fe80::1%eth0", 6443, 1, false},
		"[FE80::1%Lan0]:6443":                     {"fe80::1%Lan0", 6443, 1, false},
		"[fd00::1]:6443 weight 2 weight 4 backup": {"fd00::1", 6443, 4, true},
	} {
		if got, err := parseSpec(in); err != nil || got != want {
			t.Errorf("%q: got %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                          "is empty",
		"a:1,b:1":                   "give each one on its own",
		"https://a:6443":            "is a URL",
		"_https._tcp.a:6443":        "has SRV records, which have the port",
		"_https":                    "is not a name with SRV records",
		"a:1 weight":                "has no weight from 0 to 256",
		"a:1 weight 257":            "has no weight from 0 to 256",
		"a:1 weight backup":         "has no weight from 0 to 256",
		"a:1 check":                 `has the option "check"`,
		"a:1 backup=no":             `has the option "backup=no"`,
		"a":                         "has no port",
		"[::ffff:0.0.0.0]:6443":     "is not an address that can be connected to",
		"255.255.255.255:6443":      "is not an address that can be connected to",
		"server s1 10.0.0.1:6443":   "has no port",
		"10.0.0.1:6443 10.0.0.2:80": `has the option "10.0.0.2:80"`,
	} {
		if _, err := parseSpec(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}
