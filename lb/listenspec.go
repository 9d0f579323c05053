package lb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// acceptProxy is the option of a listener on which proxies send a PROXY header. HAProxy has
// it under this name.
const acceptProxy = "accept-proxy"

// listenSpec is one element of Config.Listen: an address, and what HAProxy has after it on
// its bind lines:
//
//	:6443
//	10.0.1.48:6443 accept-proxy
type listenSpec struct {
	address string // as it is written
	proxied bool   // accept-proxy
}

// parseListen parses an element of Config.Listen. What it returns has the address in any case.
func parseListen(s string) (listenSpec, error) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return listenSpec{}, errors.New("is empty")
	}
	l := listenSpec{address: words[0]}
	if _, err := listenAddress(l.address); err != nil {
		return l, err
	}
	for _, word := range words[1:] {
		if word != acceptProxy {
			return l, fmt.Errorf("has the option %q; the option is %s", word, acceptProxy)
		}
		l.proxied = true
	}
	return l, nil
}

// meantListener returns what was probably meant by a listener that is refused, or "".
func meantListener(s string) string {
	place, option, _ := strings.Cut(s, " ")
	guess := meant(place, func(s string) bool { _, err := listenAddress(s); return err == nil })
	switch {
	case guess == "":
		return ""
	case strings.TrimSpace(option) == "proxy_protocol": // nginx's word
		option = acceptProxy
	case guess == place: // then its options are wrong
		return ""
	}
	return strings.TrimSpace(guess + " " + option)
}

// ListenAddresses returns the addresses to listen on, without options.
func (c Config) ListenAddresses() (all []string) {
	for _, text := range c.Listen {
		l, _ := parseListen(text)
		all = append(all, l.address)
	}
	return all
}

// ProxiedListeners returns the addresses on which the connections of proxies begin with a PROXY
// header: those with the option accept-proxy, or all where none has it.
func (c Config) ProxiedListeners() (all []string) {
	for _, text := range c.Listen {
		if l, err := parseListen(text); err == nil && l.proxied {
			all = append(all, l.address)
		}
	}
	if len(c.AcceptProxyFrom) > 0 && len(all) == 0 {
		return c.ListenAddresses()
	}
	return all
}

// proxiedSince returns the listeners on which a header is looked for once c has taken the place
// of old, which may be nil. A listener that c removes is as it was for the clients that wait
// there.
func (c Config) proxiedSince(old *Config) []string {
	all := c.ProxiedListeners()
	if old == nil {
		return all
	}
	for _, gone := range old.ProxiedListeners() {
		if !slices.Contains(c.ListenAddresses(), gone) {
			all = append(all, gone)
		}
	}
	return all
}

func (v *validator) listeners(c Config) {
	if len(c.Listen) == 0 {
		v.add("Listen", "is empty").Hint = "such as :6443"
	}
	var seen []string
	for _, text := range c.Listen {
		l, err := parseListen(text)
		switch {
		case text == acceptProxy:
			v.add("Listen", "%q is no address, but an option of one", text).Hint = "write it behind its address, such as :6443 " + acceptProxy
		case err != nil:
			v.add("Listen", "%q %v", text, err).Hint = didYouMean(meantListener(text), "want ADDRESS:PORT, such as 10.0.1.48:6443, or :6443 for all addresses; "+acceptProxy+" may follow")
		case slices.Contains(seen, l.address):
			v.add("Listen", "%s is given twice", l.address)
		case l.proxied && len(c.AcceptProxyFrom) == 0:
			p := v.add("Listen", "%q needs", text)
			p.Other, p.Hint = []string{"AcceptProxyFrom"}, "name the addresses of the proxies in front: from any other address a header is a client's data"
		}
		seen = append(seen, l.address)
	}
}
