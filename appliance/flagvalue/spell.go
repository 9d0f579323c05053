package flagvalue

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	netutils "k8s.io/utils/net"

	"kthwd/appliance/program"
	"kthwd/appliance/text"
)

// keyGates is the flag of feature gates. Upstream keeps it in a registry of the whole process
// (component-base/compatibility/registry.go), as it does the others of shared: to set one of
// them would change the programs that run.
const keyGates = "feature-gates"

var shared = []string{keyGates, "emulated-version", "min-compatibility-version"}

// sets are the lists whose order means nothing. That of service-account-issuer does (the first
// one issues), as does that of service-cluster-ip-range (the first one is the primary family).
var sets = []string{
	"enable-admission-plugins", "disable-admission-plugins", "api-audiences", "tls-cipher-suites", "cors-allowed-origins", "controllers",
	"requestheader-allowed-names", "watch-cache-sizes", "etcd-servers-overrides", "disabled-metrics", "oidc-signing-algs", "oidc-required-claim",
	"cipher-suites", "cors", "host-whitelist", "authorization-mode", "runtime-config", "bind-addresses",
}

// ranges are the flags with networks, as texts that upstream parses later.
var ranges = []string{"service-cluster-ip-range", "cluster-cidr"}

// spelled is the value of a flag in one spelling.
func spelled(name, key string, f Flag) string {
	value := f.String()
	list, isList := listOf(f)
	switch {
	case slices.Contains(ranges, key):
		return spellRanges(value)
	case name == program.Etcd && key == "auto-compaction-retention":
		if d, err := time.ParseDuration(value); err == nil {
			return d.String()
		}
	case key == "runtime-config":
		return spellRuntimeConfig(value)
	case isList:
		for i := range list {
			list[i] = spellAddresses(strings.TrimSpace(list[i]))
		}
		if slices.Contains(sets, key) && !inOrder(key, list) {
			slices.Sort(list)
			list = slices.Compact(list)
		}
		return strings.Join(list, ",")
	}
	return spellAddresses(value)
}

// inOrder reports whether the order of this list matters although that of others does not: a
// webhook can refuse what a mode behind it would allow, and of a controller that is both on and
// off the first word counts (controller-manager/app/helper.go).
func inOrder(key string, list []string) bool {
	switch key {
	case "authorization-mode":
		return slices.Contains(list, "Webhook")
	case "controllers":
		return slices.ContainsFunc(list, func(c string) bool { return slices.Contains(list, "-"+c) })
	}
	return false
}

// spellRanges spells networks as upstream parses them: without the bits beyond their length.
func spellRanges(value string) string {
	all := strings.Split(value, ",")
	for i, part := range all {
		if _, n, err := netutils.ParseCIDRSloppy(strings.TrimSpace(part)); err == nil {
			all[i] = n.String()
		}
	}
	return strings.Join(all, ",")
}

// spellRuntimeConfig spells the switches of APIs: one without a value is on
// (apiserver/pkg/server/resourceconfig/helpers.go).
func spellRuntimeConfig(value string) string {
	all := strings.Split(value, ",")
	for i, part := range all {
		api, switched, _ := strings.Cut(part, "=")
		if on, err := strconv.ParseBool(switched); err == nil {
			all[i] = api + "=" + strconv.FormatBool(on)
		} else if switched == "" && api != "" {
			all[i] = api + "=true"
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// readGates reads feature gates, which are kube-apiserver's when no component is named.
func readGates(values []string) (Reading, bool) {
	gates := map[string]string{}
	for part := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		component, gate, found := strings.Cut(part, ":")
		if !found {
			component, gate = "", part
		}
		if component = strings.TrimSpace(component); component == "kube" {
			component = ""
		}
		key, value, _ := strings.Cut(gate, "=")
		on, err := strconv.ParseBool(strings.TrimSpace(value))
		if err != nil {
			return Reading{}, false
		}
		gates[component+":"+strings.TrimSpace(key)] = strconv.FormatBool(on)
	}
	var all []string
	for gate, on := range gates {
		all = append(all, gate+"="+on)
	}
	slices.Sort(all)
	return Reading{Value: strings.Join(all, ",")}, true
}

var bracketed = text.Pattern(`\[[0-9A-Fa-f:.]+\]`)

// spellAddresses spells the addresses of IPv6 in a value as Go does: one that is all of it, a
// network, or one in brackets, as in URLs.
func spellAddresses(value string) string {
	if a, err := netip.ParseAddr(value); err == nil {
		return a.String()
	}
	if n, err := netip.ParsePrefix(value); err == nil {
		return n.String()
	}
	return bracketed().ReplaceAllStringFunc(value, func(in string) string {
		a, err := netip.ParseAddr(strings.Trim(in, "[]"))
		if err != nil {
			return in
		}
		return "[" + a.String() + "]"
	})
}
