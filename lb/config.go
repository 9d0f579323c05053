package lb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The ways to check a backend.
const (
	CheckHTTPS = "https" // TLS and a GET of CheckPath: distinguishes ready, not ready and dead
	CheckTCP   = "tcp"   // opens a connection and closes it
	CheckNone  = "none"  // relies on the connect errors of client connections
)

// The ways to choose a backend.
const (
	LeastConnections = "least-connections"
	RoundRobin       = "round-robin"
	SourceHash       = "source"
	FirstAlive       = "first"
)

// The versions of the PROXY protocol header sent to backends.
const (
	ProxyOff = "off"
	ProxyV1  = "v1"
	ProxyV2  = "v2"
)

// Which backends have metrics of their own.
const (
	MetricsAuto = "auto" // each backend up to mostDetailed backends, and else their sum
	MetricsEach = "each"
	MetricsSum  = "sum" // the sum of all, but for a few series that name a backend
)

// Config is the configuration of a load balancer. Start from Default.
type Config struct {
	Listen   []string // ADDRESS:PORT of each listener; the option accept-proxy may follow
	Freebind bool     // listen on addresses that this machine does not have yet, such as one that keepalived brings
	Backends []string // HOST:PORT of each API server, or a name with SRV records; "weight N" and "backup" may follow (spec.go). A name stands for all its addresses, which are followed

	Check          string        // CheckHTTPS, CheckTCP or CheckNone
	CheckPath      string        // path that CheckHTTPS requests; status 200 means ready
	CheckInterval  time.Duration // from the start of one check of a backend to the next; jittered by 10 %
	CheckTimeout   time.Duration // limit of one check: connect, TLS, answer
	CheckFall      int           // consecutive failed checks that make a backend dead
	CheckRise      int           // consecutive passed checks that make it ready again
	BackendCA      string        // PEM file of the CA that verifies the backends' certificates; "" verifies nothing, and status reports "unverified"
	BackendName    string        // name in the backends' certificates; "" means the host of each backend
	CheckCert      string        // client certificate of the checks, for API servers that refuse anonymous requests; "" sends none
	CheckKey       string        // key of CheckCert
	Balance        string        // LeastConnections, RoundRobin, SourceHash or FirstAlive
	Cut            string        // CutDead, CutUnreachable or CutNever
	SlowStart      time.Duration // time over which a recovered backend gets a growing share; 0 switches it off
	ConnectTimeout time.Duration // limit of one attempt to connect to a backend
	HedgeAfter     time.Duration // delay before a second backend is tried beside a slow one; 0 switches it off
	ConnectBudget  time.Duration // limit of all attempts for one client, before it is held

	HoldTimeout      time.Duration // how long a client waits while no backend answers; 0 refuses it at once
	MaxHeld          int           // most clients held at one time
	FirstByteTimeout time.Duration // closes a client that sends nothing in this time; no backend is contacted for it
	HalfCloseTimeout time.Duration // closes a connection without data for this time after one side has ended
	MaxConnections   int           // most connections at one time; 0 means as many as the descriptor limit allows
	MaxPerSource     int           // most connections at one time from one address; 0 means no limit
	Sources          []string      // addresses of this machine from which backends are connected to, by turns; empty leaves it to the kernel

	ShutdownDelay time.Duration // time after SIGTERM in which it still accepts, but is no longer ready
	DrainTimeout  time.Duration // how long connections may last after their backend is removed or the process stops

	ProxyProtocol   string   // ProxyOff, ProxyV1 or ProxyV2
	AcceptProxyFrom []string // addresses and networks of proxies whose connections begin with a PROXY header; on which listeners: see ProxiedListeners
	Metrics         string   // MetricsAuto, MetricsEach or MetricsSum
	AccessLog       string   // file with one JSON line per connection; "" for none
	UpgradeSocket   string   // unix socket for the hand-over to a new process; a name that starts with @ is abstract; "" means one named after the listeners

	DiscoveryKubeconfig string // when set, backends follow the EndpointSlices of default/kubernetes
	DiscoveryCache      string // file that stores the last discovered list
}

// Default returns the default configuration. It has no Backends.
func Default() Config {
	return Config{
		Listen:           []string{":6443", ":443"},
		Check:            CheckHTTPS,
		CheckPath:        "/readyz",
		CheckInterval:    time.Second,
		CheckTimeout:     time.Second,
		CheckFall:        2,
		CheckRise:        2,
		Balance:          LeastConnections,
		Cut:              CutDead,
		SlowStart:        10 * time.Second,
		ConnectTimeout:   time.Second,
		HedgeAfter:       250 * time.Millisecond,
		ConnectBudget:    5 * time.Second,
		HoldTimeout:      10 * time.Second,
		MaxHeld:          1000,
		FirstByteTimeout: 10 * time.Second,
		HalfCloseTimeout: 30 * time.Second,
		Sources:          []string{}, // as an empty list in the file is read
		DrainTimeout:     30 * time.Second,
		ProxyProtocol:    ProxyOff,
		AcceptProxyFrom:  []string{},
		Metrics:          MetricsAuto,
	}
}

// Problem is one fault in a Config. The names of its fields are in Field and Other
// only, so that a caller can print its own names for them: Field, then Text, then
// Other.
type Problem struct {
	Field string   // the faulty field of Config
	Text  string   // the fault, starting with the value
	Other []string // fields that complete Text, as in "/cache needs" and DiscoveryKubeconfig
	Hint  string   // the remedy; may be empty
}

// Error names the fields as Config does.
func (p *Problem) Error() string {
	return strings.Join(append([]string{p.Field, p.Text}, p.Other...), " ")
}

// Problems lists every fault that shows without opening a file or a socket. New reads
// the files.
func (c Config) Problems() []*Problem {
	v := &validator{}
	v.listeners(c)
	v.backends(c)
	v.choices(c)
	v.sources(c)
	v.proxies(c)
	v.limits(c)
	v.needs("CheckCert", c.CheckCert, "CheckKey", c.CheckKey)
	v.needs("CheckKey", c.CheckKey, "CheckCert", c.CheckCert)
	v.needs("DiscoveryCache", c.DiscoveryCache, "DiscoveryKubeconfig", c.DiscoveryKubeconfig)
	return v.problems
}

// Validate returns Problems as one joined error, or nil.
func (c Config) Validate() error {
	var errs []error
	for _, p := range c.Problems() {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

type validator struct{ problems []*Problem }

func (v *validator) add(field, format string, args ...any) *Problem {
	p := &Problem{Field: field, Text: fmt.Sprintf(format, args...)}
	v.problems = append(v.problems, p)
	return p
}

// needs refuses a field that is set without the other one.
func (v *validator) needs(field, value, other, otherValue string) {
	if value != "" && otherValue == "" {
		v.add(field, "%s needs", value).Other = []string{other}
	}
}

// listenAddress parses ADDRESS:PORT; an empty address means all.
func listenAddress(s string) (netip.AddrPort, error) {
	switch {
	case s == "":
		return netip.AddrPort{}, errors.New("is empty")
	case strings.Contains(s, "://"):
		return netip.AddrPort{}, errors.New("is a URL")
	}
	host, port, err := splitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch host {
	case "":
		return netip.AddrPortFrom(netip.IPv6Unspecified(), port), nil
	case "localhost":
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("has no IP address, but %q", host)
	}
	if ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.AddrPort{}, errors.New("is not an address that a client can connect to")
	}
	return netip.AddrPortFrom(ip, port), nil
}

// splitHostPort parses HOST:PORT, with a port from 1 to 65535.
func splitHostPort(s string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		if ip, errAddress := netip.ParseAddr(s); errAddress == nil && ip.Is6() && !portAfter(s) {
			return "", 0, errors.New("has no port")
		}
		if strings.Count(s, ":") > 1 && !strings.HasSuffix(s, "]") {
			return "", 0, errors.New("needs brackets around an IPv6 address")
		}
		return "", 0, errors.New("has no port")
	}
	if _, err := netip.ParseAddr(host); err != nil && strings.HasPrefix(s, "[") {
		return "", 0, errors.New("has brackets around a host that is no IPv6 address")
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("has no port from 1 to 65535, but %q", text)
	}
	return host, uint16(n), nil
}

// portAfter reports whether an IPv6 address may have its port at the end, without brackets.
func portAfter(s string) bool {
	last := s[strings.LastIndex(s, ":")+1:]
	_, err := strconv.ParseUint(last, 10, 16)
	return err == nil && len(last) >= 3
}

// ownListener returns the listener of this balancer that a connection to the backend
// would reach, or "". Names are tested again once they are resolved.
func ownListener(listen []string, backend string) string {
	host, text, _ := net.SplitHostPort(backend)
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return ""
	}
	ip = ip.Unmap()
	switch ip { // a connection to an unspecified address reaches the loopback one
	case netip.IPv4Unspecified():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		ip = netip.IPv6Loopback()
	}
	port, _ := strconv.ParseUint(text, 10, 16)
	for _, l := range listen {
		a, err := listenAddress(l)
		if err != nil || a.Port() != uint16(port) {
			continue
		}
		family := map[bool]string{true: "tcp4", false: "tcp6"}[ip.Is4()]
		if n := Network(l); a.Addr().Unmap() == ip || a.Addr().IsUnspecified() && (n == "tcp" || n == family) && isLocal(ip) {
			return l
		}
	}
	return ""
}

// isLocal reports whether ip is an address of this machine.
func isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() {
		return true
	}
	return slices.Contains(interfaceAddresses(), ip.Unmap().WithZone(""))
}

// interfaceAddresses returns the addresses of this machine.
func interfaceAddresses() (all []netip.Addr) {
	addrs, _ := net.InterfaceAddrs() // none is known, then
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				all = append(all, ip.Unmap())
			}
		}
	}
	return all
}

func (v *validator) choices(c Config) {
	v.oneOf("Check", c.Check, CheckHTTPS, CheckTCP, CheckNone)
	v.oneOf("Balance", c.Balance, LeastConnections, RoundRobin, SourceHash, FirstAlive)
	v.oneOf("Cut", c.Cut, CutDead, CutUnreachable, CutNever)
	v.oneOf("Metrics", c.Metrics, MetricsAuto, MetricsEach, MetricsSum)
	v.oneOf("ProxyProtocol", c.ProxyProtocol, ProxyOff, ProxyV1, ProxyV2)
	if !strings.HasPrefix(c.CheckPath, "/") || strings.ContainsAny(c.CheckPath, " \r\n\x00") {
		v.add("CheckPath", "%q is not a path: it must start with /", c.CheckPath)
	}
}

func (v *validator) oneOf(field, value string, choices ...string) {
	if !slices.Contains(choices, value) {
		v.add(field, "%q is none of %s", value, strings.Join(choices, ", "))
	}
}

func (v *validator) limits(c Config) {
	for _, d := range []struct {
		field string
		value time.Duration
		least time.Duration
	}{
		{"CheckInterval", c.CheckInterval, 10 * time.Millisecond},
		{"CheckTimeout", c.CheckTimeout, 10 * time.Millisecond},
		{"SlowStart", c.SlowStart, 0},
		{"ConnectTimeout", c.ConnectTimeout, 10 * time.Millisecond},
		{"HedgeAfter", c.HedgeAfter, 0},
		{"ConnectBudget", c.ConnectBudget, c.ConnectTimeout},
		{"HoldTimeout", c.HoldTimeout, 0},
		{"FirstByteTimeout", c.FirstByteTimeout, 100 * time.Millisecond},
		{"HalfCloseTimeout", c.HalfCloseTimeout, 100 * time.Millisecond},
		{"ShutdownDelay", c.ShutdownDelay, 0},
		{"DrainTimeout", c.DrainTimeout, 0},
	} {
		if d.value < d.least || d.value > 24*time.Hour {
			v.add(d.field, "%v is out of range: want %v to 24h", d.value, d.least)
		}
	}
	for _, n := range []struct {
		field       string
		value, most int
		least       int
	}{
		{"CheckFall", c.CheckFall, 100, 1},
		{"CheckRise", c.CheckRise, 100, 1},
		{"MaxHeld", c.MaxHeld, 1 << 20, 0},
		{"MaxConnections", c.MaxConnections, 1 << 20, 0},
		{"MaxPerSource", c.MaxPerSource, 1 << 20, 0},
	} {
		if n.value < n.least || n.value > n.most {
			v.add(n.field, "%d is out of range: want %d to %d", n.value, n.least, n.most)
		}
	}
}
