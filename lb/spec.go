package lb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// spec is one element of Config.Backends: where a backend is, and the options that HAProxy
// and nginx have for their servers, in either spelling:
//
//	10.0.1.73:6443
//	api.example.com:6443 weight 10
//	_https._tcp.api.example.com
//	10.9.0.1:6443 weight=10 backup
type spec struct {
	host   string // an address, a name, or a name with SRV records
	port   uint16 // 0 for a name with SRV records
	weight int
	backup bool
}

const (
	normalWeight = 1
	maxWeight    = 256
)

// parseSpec parses an element of Config.Backends.
func parseSpec(s string) (spec, error) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return spec{}, errors.New("is empty")
	}
	at, err := parsePlace(words[0])
	if err != nil {
		return at, err
	}
	at.weight = normalWeight
	for rest := words[1:]; len(rest) > 0; rest = rest[1:] {
		word, value, assigned := strings.Cut(rest[0], "=")
		switch {
		case word == "backup" && !assigned:
			at.backup = true
			continue
		case word != "weight":
			return at, fmt.Errorf("has the option %q; the options are weight N and backup", rest[0])
		case !assigned && len(rest) > 1:
			rest = rest[1:]
			value = rest[0]
		}
		if at.weight, err = strconv.Atoi(value); err != nil || at.weight < 0 || at.weight > maxWeight {
			return at, fmt.Errorf("has no weight from 0 to %d, but %q", maxWeight, value)
		}
	}
	return at, nil
}

// parsePlace parses HOST:PORT, or a name with SRV records, which has no port.
func parsePlace(s string) (spec, error) {
	host, port, err := s, uint16(0), error(nil)
	service := strings.HasPrefix(s, "_")
	switch {
	case strings.Contains(s, ","):
		return spec{}, errors.New("is several: give each one on its own")
	case strings.Contains(s, "://"):
		return spec{}, errors.New("is a URL")
	case service && strings.Contains(s, ":"):
		return spec{}, errors.New("has SRV records, which have the port")
	case service && len(strings.Split(strings.TrimSuffix(s, "."), ".")) < 3:
		return spec{}, errors.New("is not a name with SRV records, such as _https._tcp.example.com")
	case !service:
		host, port, err = splitHostPort(s)
	}
	if err != nil {
		return spec{}, err
	}
	host, err = canonicalHost(host)
	return spec{host: host, port: port}, err
}

// canonicalHost returns a name in lower case and without the dot at its end, or an address
// that can be connected to in its usual form.
func canonicalHost(host string) (string, error) {
	if _, err := netip.ParseAddr(host); err != nil { // the zone of an address is an interface, whose case counts
		host = strings.ToLower(strings.TrimSuffix(host, "."))
	}
	if host == "" {
		return "", errors.New("has no host")
	}
	if strings.HasPrefix(host, ".") || strings.HasSuffix(host, ".") || strings.Contains(host, "..") {
		return "", errors.New("is not a host name: a part between two dots is empty")
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host, nil
	}
	if ip = ip.Unmap(); !connectable(ip) {
		return "", errors.New("is " + notConnectable)
	}
	return ip.String(), nil
}

const notConnectable = "not an address that can be connected to"

// connectable reports whether ip can be the address of another machine. A connection to an
// unspecified one reaches this machine.
func connectable(ip netip.Addr) bool {
	ip = ip.Unmap()
	return !ip.IsUnspecified() && !ip.IsMulticast() && ip != broadcast
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// meantBackend returns what was probably meant by a backend that is refused, or "".
func meantBackend(b string) string {
	place, options, _ := strings.Cut(b, " ")
	guess := meant(place, func(s string) bool { _, err := normalBackend(s); return err == nil })
	if guess == "" || guess == place { // then its options are wrong
		return ""
	}
	return strings.TrimSpace(guess + " " + options)
}

// place is HOST:PORT, or the name with SRV records, in canonical form.
func (s spec) place() string {
	if s.port == 0 {
		return s.host
	}
	return net.JoinHostPort(s.host, strconv.Itoa(int(s.port)))
}

// address returns the address, if the spec has one and not a name.
func (s spec) address() (netip.AddrPort, bool) {
	ip, err := netip.ParseAddr(s.host)
	return netip.AddrPortFrom(ip, s.port), err == nil
}

// specs returns the configured backends; the configuration is valid.
func (c Config) specs() (all []spec) {
	for _, b := range c.Backends {
		if s, err := parseSpec(b); err == nil {
			all = append(all, s)
		}
	}
	return all
}

// Servers returns HOST:PORT of each configured backend, without options. A name with SRV
// records has no HOST:PORT and is left out.
func (c Config) Servers() (all []string) {
	for _, s := range c.specs() {
		if s.port != 0 {
			all = append(all, s.place())
		}
	}
	return all
}

// normalBackend returns HOST:PORT in canonical form. It accepts no options.
func normalBackend(s string) (string, error) {
	at, err := parsePlace(s)
	if err == nil && at.port == 0 {
		err = errors.New("has no port")
	}
	if err != nil {
		return "", err
	}
	return at.place(), nil
}

func (v *validator) backends(c Config) {
	if len(c.Backends) == 0 && c.DiscoveryKubeconfig == "" {
		v.add("Backends", "is empty: there is nothing to balance").Hint = "name each API server, such as 10.0.1.73:6443"
	}
	var seen []string
	given := 0
	for _, b := range c.Backends {
		at, err := parseSpec(b)
		switch name := at.place(); {
		case err != nil:
			v.add("Backends", "%q %v", b, err).Hint = didYouMean(meantBackend(b), "want HOST:PORT, such as 10.0.1.73:6443; weight N and backup may follow")
			given++ // it is there, if not usable
			continue
		case slices.Contains(seen, name):
			v.add("Backends", "%s is given twice", b)
		default:
			if l := ownListener(c.ListenAddresses(), name); l != "" {
				v.add("Backends", "%s is this load balancer itself, which listens on %s", b, l).Hint = "a backend is an API server; give the controllers' addresses, or listen on one address only"
			}
		}
		if seen = append(seen, at.place()); at.weight > 0 {
			given++
		}
	}
	if len(c.Backends) > 0 && given == 0 && c.DiscoveryKubeconfig == "" {
		v.add("Backends", "have weight 0, all of them: no client would be served").Hint = "weight 0 takes one backend out; leave another one in"
	}
}
