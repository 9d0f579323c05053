package lb

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestProblems(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   []string // prefix of each problem
	}{
		{"nothing", func(c *Config) {}, nil},
		{"empty", func(c *Config) { *c = Config{} }, []string{
			"Listen is empty", "Backends is empty", `Check "" is none of https, tcp, none`, `Balance "" is none of`, `Cut "" is none of dead, unreachable, never`, `Metrics "" is none of auto, each, sum`, `ProxyProtocol "" is none of off, v1, v2`,
			`CheckPath "" is not a path`, "CheckInterval 0s is out of range: want 10ms to 24h", "CheckTimeout 0s", "ConnectTimeout 0s",
			"FirstByteTimeout 0s", "HalfCloseTimeout 0s", "CheckFall 0 is out of range: want 1 to 100", "CheckRise 0",
		}},
		{"no port", func(c *Config) { c.Listen = []string{"10.0.0.1"} }, []string{`Listen "10.0.0.1" has no port`}},
		{"port 0", func(c *Config) { c.Listen = []string{":0"} }, []string{`Listen ":0" has no port from 1 to 65535, but "0"`}},
		{"port too large", func(c *Config) { c.Backends = []string{"a:65536"} }, []string{`Backends "a:65536" has no port from`}},
		{"listen on a name", func(c *Config) { c.Listen = []string{"host:1"} }, []string{`Listen "host:1" has no IP address, but "host"`}},
		{"listen twice", func(c *Config) { c.Listen = []string{":1", ":1"} }, []string{"Listen :1 is given twice"}},
		{"IPv6 without brackets", func(c *Config) { c.Backends = []string{"2001:db8::1:6443"} }, []string{`Backends "2001:db8::1:6443" needs brackets around an IPv6 address`}},
		{"IPv6", func(c *Config) { c.Backends = []string{"[2001:db8::1]:6443"} }, nil},
		{"a name in brackets", func(c *Config) { c.Backends = []string{"[api.example.com]:6443"} }, []string{`Backends "[api.example.com]:6443" has brackets around a host that is no IPv6 address`}},
		{"a service without a protocol", func(c *Config) { c.Backends = []string{"_https.example."} }, []string{`Backends "_https.example." is not a name with SRV records`}},
		{"no host", func(c *Config) { c.Backends = []string{":6443"} }, []string{`Backends ":6443" has no host`}},
		{"a dot for a host", func(c *Config) { c.Backends = []string{".:6443"} }, []string{`Backends ".:6443" has no host`}},
		{"two dots", func(c *Config) { c.Backends = []string{"a..:6443"} }, []string{`Backends "a..:6443" is not a host name`}},
		{"unspecified", func(c *Config) { c.Backends = []string{"0.0.0.0:6443"} }, []string{`Backends "0.0.0.0:6443" is not an address that can be connected to`}},
		{"multicast", func(c *Config) { c.Backends = []string{"224.0.0.1:6443"} }, []string{`Backends "224.0.0.1:6443" is not an address`}},
		{"backend twice", func(c *Config) { c.Backends = []string{"a:1", "A.:1"} }, []string{"Backends A.:1 is given twice"}},
		{"backend twice, in another form", func(c *Config) { c.Backends = []string{"10.0.0.9:1", "[::ffff:10.0.0.9]:1"} }, []string{"Backends [::ffff:10.0.0.9]:1 is given twice"}},
		{"itself", func(c *Config) { c.Backends = []string{"127.0.0.1:6443"} }, []string{"Backends 127.0.0.1:6443 is this load balancer itself, which listens on :6443"}},
		{"itself, by name", func(c *Config) { c.Backends = []string{"LOCALHOST:443"} }, []string{"Backends LOCALHOST:443 is this load balancer itself, which listens on :443"}},
		{"itself, by IPv6", func(c *Config) { c.Backends = []string{"[::1]:443"} }, []string{"Backends [::1]:443 is this load balancer itself"}},
		{"the same port elsewhere", func(c *Config) { c.Listen = []string{"127.0.0.2:6443"}; c.Backends = []string{"127.0.0.1:6443"} }, nil},
		{"no backend but discovery", func(c *Config) { c.Backends, c.DiscoveryKubeconfig = nil, "k" }, nil},
		{"cache without discovery", func(c *Config) { c.DiscoveryCache = "c" }, []string{"DiscoveryCache c needs DiscoveryKubeconfig"}},
		{"certificate without key", func(c *Config) { c.CheckCert = "c" }, []string{"CheckCert c needs CheckKey"}},
		{"key without certificate", func(c *Config) { c.CheckKey = "c" }, []string{"CheckKey c needs CheckCert"}},
		{"unknown check", func(c *Config) { c.Check = "ping" }, []string{`Check "ping" is none of`}},
		{"unknown balance", func(c *Config) { c.Balance = "random" }, []string{`Balance "random" is none of least-connections, round-robin, source, first`}},
		{"path without slash", func(c *Config) { c.CheckPath = "readyz" }, []string{`CheckPath "readyz" is not a path`}},
		{"path that ends the request", func(c *Config) { c.CheckPath = "/ HTTP/1.1\r\nX: y" }, []string{"CheckPath "}},
		{"budget below one attempt", func(c *Config) { c.ConnectBudget = c.ConnectTimeout - 1 }, []string{"ConnectBudget "}},
		{"negative", func(c *Config) {
			c.HoldTimeout, c.DrainTimeout, c.MaxHeld, c.MaxConnections, c.MaxPerSource = -1, -1, -1, -1, -1
		},
			[]string{"HoldTimeout -1ns", "DrainTimeout -1ns", "MaxHeld -1", "MaxConnections -1", "MaxPerSource -1"}},
		{"too long", func(c *Config) { c.CheckInterval = 25 * time.Hour }, []string{"CheckInterval 25h0m0s is out of range"}},
		{"off", func(c *Config) { c.HedgeAfter, c.HoldTimeout, c.SlowStart, c.MaxHeld, c.DrainTimeout = 0, 0, 0, 0, 0 }, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Default()
			c.Backends = []string{"10.0.0.11:6443", "api.example.com:6443"}
			tt.change(&c)
			var got []string
			for _, p := range c.Problems() {
				got = append(got, p.Error())
			}
			if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			if (c.Validate() == nil) != (len(tt.want) == 0) {
				t.Errorf("Validate: %v", c.Validate())
			}
		})
	}
}

func FuzzNormalBackend(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:6443", "10.0.0.1:6443", "[fe80::1%eth0]:1", "A.B.:1", ":1", "[::ffff:1.2.3.4]:5", "x", "[:]:1", ".:1", "[_]:1", "[a]:1", "[]:1", "_a.b.", "_a._b.c."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := normalBackend(s)
		if err != nil {
			return
		}
		again, err := normalBackend(name)
		if err != nil || again != name {
			t.Errorf("%q becomes %q, and that %q, %v", s, name, again, err)
		}
	})
}
