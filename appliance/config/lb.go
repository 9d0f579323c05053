package config

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"kthwd/lb"
)

// lbSettings names the setting of each field of lb.Config.
var lbSettings = map[string]string{
	"Listen":              "listen",
	"Freebind":            "freebind",
	"Backends":            "backend",
	"Check":               "check",
	"CheckPath":           "check-path",
	"CheckInterval":       "check-interval",
	"CheckTimeout":        "check-timeout",
	"CheckFall":           "check-fall",
	"CheckRise":           "check-rise",
	"BackendCA":           "backend-ca",
	"BackendName":         "backend-server-name",
	"CheckCert":           "check-client-certificate",
	"CheckKey":            "check-client-key",
	"Balance":             "balance",
	"Cut":                 "cut",
	"SlowStart":           "slow-start",
	"ConnectTimeout":      "connect-timeout",
	"HedgeAfter":          "hedge-after",
	"ConnectBudget":       "connect-budget",
	"HoldTimeout":         "hold-timeout",
	"MaxHeld":             "max-held",
	"FirstByteTimeout":    "first-byte-timeout",
	"HalfCloseTimeout":    "half-close-timeout",
	"MaxConnections":      "max-connections",
	"MaxPerSource":        "max-connections-per-source",
	"Sources":             "source",
	"ShutdownDelay":       "shutdown-delay",
	"DrainTimeout":        "drain-timeout",
	"ProxyProtocol":       "proxy-protocol",
	"AcceptProxyFrom":     "accept-proxy-from",
	"Metrics":             "metrics-backends",
	"AccessLog":           "access-log",
	"UpgradeSocket":       "upgrade-socket",
	"DiscoveryKubeconfig": "discovery-kubeconfig",
	"DiscoveryCache":      "discovery-cache",
}

// lbProblems returns package lb's problems with c, with settings in place of fields.
func lbProblems(c lb.Config) (problems []*Problem) {
	for _, p := range c.Problems() {
		problems = append(problems, fromLB(p))
	}
	v := &validator{}
	for field, path := range map[string]string{
		"BackendCA": c.BackendCA, "CheckCert": c.CheckCert, "CheckKey": c.CheckKey, "AccessLog": c.AccessLog,
		"UpgradeSocket": c.UpgradeSocket, "DiscoveryKubeconfig": c.DiscoveryKubeconfig, "DiscoveryCache": c.DiscoveryCache,
	} {
		v.path(lbSettings[field], path)
	}
	slices.SortFunc(v.problems, func(a, b *Problem) int { return strings.Compare(a.Key, b.Key) })
	return append(problems, v.problems...)
}

// fromLB names the settings where package lb names the fields of its Config.
func fromLB(p *lb.Problem) *Problem {
	text := p.Text
	for _, field := range p.Other {
		text += " --" + lbSettings[field]
	}
	return &Problem{Key: lbSettings[p.Field], Text: text, Hint: p.Hint}
}

// lbListeners returns the listeners with a valid address; the others are problems already.
func lbListeners(c lb.Config) (all []listener) {
	addresses := c.ListenAddresses()
	for i, l := range addresses {
		if slices.Contains(addresses[:i], l) {
			continue // a problem as well
		}
		if host, port, problem := splitAddress(l); problem == "" {
			all = append(all, listener{key: "listen", hosts: []string{host}, port: port, address: l, family: true})
		}
	}
	return all
}

// WithPlaces converts each *lb.Problem joined in err to a *Problem, and adds to every
// *Problem the place where its value is set. It leaves other errors as they are.
func (l *Loader) WithPlaces(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, l.WithPlaces(e))
		}
		return errors.Join(all...)
	}
	if p, ok := errors.AsType[*lb.Problem](err); ok {
		return l.located([]*Problem{fromLB(p)})
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		return l.located([]*Problem{p})
	}
	return err
}

// LBWarnings lists settings that are allowed but probably not intended, one line each.
func LBWarnings(c lb.Config) (lines []string) {
	if c.Check == lb.CheckHTTPS && c.BackendCA == "" {
		lines = append(lines, "checks do not verify the certificates of the backends: give the cluster's ca.pem with --backend-ca")
	}
	for _, from := range c.AcceptProxyFrom {
		if p, err := netip.ParsePrefix(from); err == nil && p.Bits() == 0 {
			lines = append(lines, "--accept-proxy-from "+from+": every client can name an address of its choice, and one that sends no PROXY header is refused")
		}
	}
	if c.ProxyProtocol != lb.ProxyOff {
		lines = append(lines, "--proxy-protocol "+c.ProxyProtocol+": kube-apiserver does not understand the header and will answer no client")
	}
	return lines
}
